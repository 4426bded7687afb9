"""What a test does to the site. There is no protection against forged requests: nobody else is here."""

from datetime import timedelta

from django.contrib import auth
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.urls import path
from django.utils import timezone


def who(request):
    """The user's name as Django knows it; nothing for somebody anonymous."""
    return HttpResponse(request.user.get_username())


def login(request):
    name, password = request.POST["username"], request.POST["password"]
    user = auth.authenticate(request, username=name, password=password)
    if user is None:
        return HttpResponse("wrong password", status=403)
    auth.login(request, user)
    return who(request)


def logout(request):
    auth.logout(request)
    return HttpResponse()


def visit(request):
    """A session without a login."""
    request.session["visited"] = True
    return HttpResponse()


def password(request):
    """Another password; the session is not told, so the login counts no more."""
    request.user.set_password(request.POST["password"])
    request.user.save()
    return HttpResponse()


def deactivate(request):
    request.user.is_active = False
    request.user.save()
    return HttpResponse()


def expire(request):
    """Ends the session in its row."""
    rows = Session.objects.filter(session_key=request.session.session_key)
    rows.update(expire_date=timezone.now() - timedelta(seconds=1))
    return HttpResponse()


views = [who, login, logout, visit, password, deactivate, expire]
urlpatterns = [path(view.__name__, view) for view in views]
