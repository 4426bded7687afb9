"""A Django site as small as can be, for tests. What differs comes by the environment, as JSON."""

import json
import os

_given = json.loads(os.environ["SITE"])

SECRET_KEY = _given["secret_key"]
SESSION_ENGINE = _given["engine"]
DATABASES = {"default": _given["database"]}

ALLOWED_HOSTS = ["127.0.0.1"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
# The others take their time on purpose.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ROOT_URLCONF = "urls"
USE_TZ = True
