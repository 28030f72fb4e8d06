# Django with the database of PGHOST, PGPORT, PGUSER and PGDATABASE, for the programs in
# this directory.  Models can be imported after set_up().
import os

import django
from django.conf import settings


def set_up(*apps, **more):
    settings.configure(
        DATABASES={'default': {
            'ENGINE': 'django.db.backends.postgresql',
            'HOST': os.environ['PGHOST'],
            'PORT': os.environ['PGPORT'],
            'USER': os.environ['PGUSER'],
            'NAME': os.environ['PGDATABASE'],
            **more,
        }},
        INSTALLED_APPS=['django.contrib.auth', 'django.contrib.contenttypes', 'rest_framework', *apps],
        SECRET_KEY='for a test, and of no use elsewhere',
        USE_TZ=True)
    django.setup()
