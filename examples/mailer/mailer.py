#!/usr/bin/env python3
"""Delivers the notifications of apitoken by mail, as signed webhooks, or both.

    mailer.py CONFIG          runs until SIGTERM or SIGINT
    mailer.py CONFIG --once   delivers what is due, and exits: 1 if something failed

See README.md.  Needs Python 3.9 and psycopg 3.1.
"""
import argparse
import base64
import configparser
import hashlib
import hmac
import html
import json
import logging
import os
import re
import select
import signal
import smtplib
import ssl
import string
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

import psycopg
from psycopg.rows import dict_row

log = logging.getLogger('apitoken-mailer')


class Failed(Exception):
    """The notification, or a part of it, is to be tried again later."""


class Unreachable(Failed):
    """The server cannot be reached, so it need not be tried for others now."""


def one_line(value):
    """A value without control characters: names could otherwise add headers or lines."""
    return re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]+', ' ', str(value)).strip()


def for_record(text):
    """Text of a server, for the log and the database, which may have an encoding without other characters than ASCII."""
    return one_line(text).encode('ascii', 'backslashreplace').decode()


def in_words(at):
    """A time of the payload, in UTC."""
    if at is None:
        return 'never'
    try:
        utc = datetime.fromisoformat(re.sub(r'\.\d+', '', at)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        # after the year 9999
        return one_line(at)
    return utc.strftime('%d %B %Y, %H:%M UTC')


def to_header(address):
    """A mail to this address, or None if it is not valid.

    The parser raises more kinds of exceptions than it documents, and its time can grow with the square of the length.
    It decodes encoded words.  The header must name the address to which the mail is sent.
    """
    message = EmailMessage(policy=SMTP)
    if len(address) > 254:
        return None
    try:
        message['To'] = Address(addr_spec=address)
        valid = [to.addr_spec for to in message['To'].addresses] == [address]
    except Exception:
        return None
    return message if valid else None


class Mail:
    """Sends each recipient a mail of their own, over one connection."""

    def __init__(self, config, templates):
        self.sender = config['from']
        self.domain = config.get('message_id_domain', self.sender.rpartition('@')[2].strip('>'))
        self.templates = {}
        for name in os.listdir(templates):
            if name.endswith('.txt'):
                with open(os.path.join(templates, name), encoding='utf-8') as file:
                    self.templates[name[:-4]] = string.Template(file.read())
        with open(os.path.join(templates, 'layout.html'), encoding='utf-8') as file:
            self.layout = string.Template(file.read())
        self.host, self.port = config.get('host', 'localhost'), config.getint('port', 25)
        self.tls = config.get('tls', 'starttls')
        self.context = ssl.create_default_context(cafile=config.get('ca_file'))
        self.user, self.password_file = config.get('user'), config.get('password_file')
        if self.user and not self.password_file:
            sys.exit('the configuration has a user in [smtp], but no password_file')
        self.connection = None

    def connect(self):
        try:
            if self.tls == 'implicit':
                self.connection = smtplib.SMTP_SSL(self.host, self.port, timeout=30, context=self.context)
            else:
                self.connection = smtplib.SMTP(self.host, self.port, timeout=30)
                if self.tls == 'starttls':
                    self.connection.starttls(context=self.context)
            if self.user:
                with open(self.password_file, encoding='utf-8') as file:
                    self.connection.login(self.user, file.read().strip())
        except Exception as error:
            # a connection without TLS or the login must not be used
            self.close()
            if not isinstance(error, (OSError, smtplib.SMTPException)):
                error = type(error).__name__
            raise Unreachable(f'{self.host}:{self.port}: {error}') from None

    def close(self):
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.quit()
            except (OSError, smtplib.SMTPException):
                connection.close()

    def message(self, notification, message, address):
        """Completes the message, which has the recipient's header already."""
        payload = notification['payload']
        values = {key: one_line(value) if value is not None else '' for key, value in payload.items()}
        values['organization'] = values['organization_name'] or values['organization_id'] or 'your personal tokens'
        values['creator'] = values['created_by_name'] or values['created_by'] or 'an administrator'
        values['actor'] = values['actor'] or 'an administrator or an API token'
        values['role'] = values['role'] or '(that of its user)'
        values['reason'] = values['reason'] or '(none given)'
        values['done'] = 'The token was revoked.' if payload.get('action') == 'revoked' else 'It is still accepted: regenerate it without an overlap, or revoke it.'
        for key in ('at', 'created_at', 'expires_at'):
            values[key] = in_words(payload[key])
        try:
            subject, _, text = self.templates[notification['event']].substitute(values).partition('\n')
            text = text.strip() + '\n'
            body = '\n'.join('<p>' + html.escape(part).replace('\n', '<br>\n') + '</p>' for part in text.strip().split('\n\n'))
            page = self.layout.substitute(subject=html.escape(subject), body=body)
        except (KeyError, ValueError) as error:
            raise Failed(f"no template {notification['event']}, or a mistake in it: {error}") from error
        # without encoded words, which a mail program decodes: they could have control characters, too
        message['Subject'] = subject.replace('=?', '= ?')
        message['From'] = self.sender
        message['Date'] = format_datetime(datetime.now(timezone.utc))
        # the same each time, so that the recipient's server can drop a repetition
        of_address = hashlib.sha256(address.encode()).hexdigest()[:12]
        message['Message-ID'] = f"<{notification['id']}.{of_address}@{self.domain}>"
        message['Auto-Submitted'] = 'auto-generated'
        message.set_content(text)
        message.add_alternative(page, subtype='html')

    def send(self, notification, address):
        """True if the server has accepted the mail, false if it never will."""
        message = to_header(address)
        if message is None:
            log.warning('%s: an address is not valid', notification['id'])
            return False
        self.message(notification, message, address)
        for attempt in (1, 2):
            if self.connection is None:
                self.connect()
                attempt = 2
            try:
                self.connection.send_message(message, to_addrs=[address])
                return True
            except smtplib.SMTPRecipientsRefused as error:
                code, text = error.recipients[address]
                text = for_record(text.decode(errors='replace'))
                if code < 500:
                    raise Failed(f'{code} {text}') from error
                log.warning('%s: a recipient was refused: %s %s', notification['id'], code, text)
                return False
            except smtplib.SMTPServerDisconnected as error:
                # it may have been idle for too long
                self.close()
                if attempt == 2:
                    raise Failed(str(error)) from error
            except smtplib.SMTPException as error:
                raise Failed(str(error)) from error
            except OSError as error:
                self.close()
                raise Failed(str(error)) from error
            except Exception:
                # it may be in the middle of a mail
                self.close()
                raise
        return False


class Webhook:
    """POSTs the payload, signed as Standard Webhooks describes."""

    def __init__(self, config):
        self.url = config['url']
        if not self.url.startswith(('https://', 'http://')):
            sys.exit('the url of the webhook must begin with https:// or http://')
        with open(config['secret_file'], encoding='utf-8') as file:
            self.secret = base64.b64decode(file.read().strip().removeprefix('whsec_'), validate=True)
        if len(self.secret) < 24:
            sys.exit('the secret of the webhook is too short: it needs 24 to 64 bytes in base64')
        context = ssl.create_default_context(cafile=config.get('ca_file'))
        # a redirect would send the payload to another address
        self.opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(context=context),
                        urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()):
            self.opener.add_handler(handler)

    def send(self, notification, _):
        payload = notification['payload']
        body = json.dumps({'type': 'token.' + notification['event'], 'timestamp': payload['at'], 'data': payload}).encode()
        at = str(int(time.time()))
        signed = b'.'.join((str(notification['id']).encode(), at.encode(), body))
        signature = base64.b64encode(hmac.new(self.secret, signed, hashlib.sha256).digest()).decode()
        request = urllib.request.Request(self.url, body, {
            'Content-Type': 'application/json', 'User-Agent': 'apitoken-mailer',
            'webhook-id': str(notification['id']), 'webhook-timestamp': at, 'webhook-signature': 'v1,' + signature})
        try:
            with self.opener.open(request, timeout=15):
                return True
        except urllib.error.HTTPError as error:
            raise Failed(f'the webhook answered {error.code}') from error
        except urllib.error.URLError as error:
            raise Unreachable(f'webhook: {error}') from error
        except OSError as error:
            raise Failed(f'webhook: {error}') from error


class Mailer:
    def __init__(self, config):
        outbox = config['outbox'] if 'outbox' in config else {}
        self.batch = int(outbox.get('batch', 20))
        self.lease = float(outbox.get('lease', 300))
        self.poll = float(outbox.get('poll', 60))
        self.conninfo = config.get('database', 'conninfo', fallback='')
        here = os.path.dirname(os.path.abspath(__file__))
        self.mail = Mail(config['smtp'], config['smtp'].get('templates', os.path.join(here, 'templates'))) if 'smtp' in config else None
        self.webhook = Webhook(config['webhook']) if 'webhook' in config else None
        if self.mail is None and self.webhook is None:
            sys.exit('the configuration has neither [smtp] nor [webhook]')
        # the addresses that have the mail of a notification that has failed in part, and None if the webhook has it; by id
        self.accepted = {}
        self.stopping = False
        # a NOTIFY came with the answer of a statement, which may not have seen what it is about
        self.notified = False
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.waker, False)

    def stop(self, *_):
        self.stopping = True
        os.write(self.waker, b'x')

    def notify(self, _):
        self.notified = True

    def deliver(self, notification, until, unreachable):
        """Sends what was not accepted before.  unreachable has the servers that cannot be reached, and why."""
        accepted = self.accepted.setdefault(notification['id'], set())
        failure = None
        for channel, address in [(self.webhook, None)] + [(self.mail, address) for address in notification['recipients']]:
            if channel is None or address in accepted:
                continue
            if self.stopping:
                raise Failed('the mailer was stopped')
            if time.monotonic() > until:
                raise Failed('the time of the lease was over')
            if channel in unreachable:
                failure = unreachable[channel]
                continue
            try:
                if channel.send(notification, address):
                    accepted.add(address)
            except Unreachable as error:
                failure = unreachable[channel] = error
            except Failed as error:
                failure = error
            except Exception as error:
                # Libraries raise more than they document.  The text may quote what is not for the log.
                failure = Failed(type(error).__name__)
        if failure is not None:
            raise failure
        if self.mail is not None and not accepted - {None}:
            raise Failed('all recipients were refused')

    def sweep(self, connection):
        """Delivers what is due.  Returns whether all of it was delivered."""
        good = True
        unreachable = {}
        while not self.stopping and not all(channel in unreachable for channel in (self.webhook, self.mail) if channel is not None):
            until = time.monotonic() + 0.8 * self.lease
            rows = connection.execute('SELECT * FROM apitoken.claim_notifications(%s, make_interval(secs => %s))',
                                      (self.batch, self.lease)).fetchall()
            if not rows:
                break
            for row in rows:
                try:
                    self.deliver(row, until, unreachable)
                except Failed as error:
                    good = False
                    reason = for_record(error)
                    again = connection.execute('SELECT apitoken.notification_failed(%s, %s, %s) AS at',
                                               (row['id'], reason, row['attempts'])).fetchone()['at']
                    log.warning('%s: %s; %s', row['id'], reason, 'given up, or claimed by another mailer' if again is None else f'again at {again}')
                    if again is None:
                        self.accepted.pop(row['id'], None)
                else:
                    connection.execute('SELECT apitoken.notification_delivered(%s)', (row['id'],))
                    self.accepted.pop(row['id'], None)
                    log.info('%s: delivered', row['id'])
        if self.mail is not None:
            self.mail.close()
        return good

    def wait(self, connection):
        """Waits for NOTIFY, for the time of the next look, or to be stopped."""
        if self.notified:
            return
        ready, _, _ = select.select([connection.fileno(), self.wake], [], [], self.poll)
        if connection.fileno() in ready:
            connection.pgconn.consume_input()
            while connection.pgconn.notifies():
                pass

    def run(self, once):
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        with psycopg.connect(self.conninfo, autocommit=True, row_factory=dict_row, application_name='apitoken-mailer') as connection:
            if once:
                return self.sweep(connection)
            connection.add_notify_handler(self.notify)
            connection.execute('LISTEN apitoken')
            log.info('ready')
            while not self.stopping:
                self.notified = False
                self.sweep(connection)
                if not self.stopping:
                    self.wait(connection)
        return True


def main():
    parser = argparse.ArgumentParser(description='Delivers the notifications of apitoken.')
    parser.add_argument('config')
    parser.add_argument('--once', action='store_true', help='deliver what is due, and exit')
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
    config = configparser.ConfigParser(interpolation=None)
    with open(arguments.config, encoding='utf-8') as file:
        config.read_file(file)
    sys.exit(0 if Mailer(config).run(arguments.once) else 1)


if __name__ == '__main__':
    main()
