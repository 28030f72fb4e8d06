# Tokens of django-rest-knox, for a test that imports them.
#
#     PYTHONPATH=directory-of-knox python3 make_knox_keys.py
#
# Connects according to PGHOST, PGPORT, PGUSER and PGDATABASE.  Creates the tables and
# some tokens there, and prints a JSON object with the user's id, the tokens by name,
# and what Knox says of each.  Runs with versions 3 to 5.
import datetime
import inspect
import json

from django_database import set_up

set_up('knox')

# these can only be imported now
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from knox.auth import TokenAuthentication  # noqa: E402
from knox.models import AuthToken  # noqa: E402
from rest_framework.exceptions import AuthenticationFailed  # noqa: E402

call_command('migrate', verbosity=0)
user = User.objects.create(username='ada')
parameters = inspect.signature(AuthToken.objects.create).parameters
# until version 3 the argument and the column are called expires, and only the text is returned
expiry = 'expiry' if 'expiry' in parameters else 'expires'


def create(**arguments):
    made = AuthToken.objects.create(user, **arguments)
    return made[1] if isinstance(made, tuple) else made


def is_valid(text):
    try:
        TokenAuthentication().authenticate_credentials(text.encode())
        return True
    except AuthenticationFailed:
        return False


keys = {'plain': create(), 'never': create(**{expiry: None})}
if 'prefix' in parameters:
    keys['prefixed'] = create(prefix='acme_')
valid = {name: is_valid(text) for name, text in keys.items()}
# afterwards: an expired token is deleted when another one of its user is verified
keys['expired'] = create(**{expiry: datetime.timedelta(hours=-1)})
print(json.dumps({'user': user.id, 'keys': keys, 'valid': valid}))
