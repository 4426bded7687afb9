"""Makes the tables and the users, and serves the site on a free port of this machine.

Prints the port. Ends when its input ends, so that it does not outlive a test.
"""

import os
import sys
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"

from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402


class Quiet(WSGIRequestHandler):
    def log_message(self, *words):
        pass


def end_with_input():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_input, daemon=True).start()
application = get_wsgi_application()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User  # noqa: E402

User.objects.all().delete()
for name in sys.argv[1:]:
    User.objects.create_user(name, password=f"password-of-{name}")

server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
print(f"port {server.server_port}", flush=True)
server.serve_forever()
