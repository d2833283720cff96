/**
 * The way to a gateway: one function that gives a connected, authenticated stream. Everything above it speaks HTTP and does
 * not know how the bytes travel: straight, over a link that the gateway has made to us, or by way of a relay (`routes.ts`).
 */
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import { IdentityMismatchError, UnknownOutcomeError } from './errors.ts';

export interface Endpoint {
  /** https, without a path. */
  readonly url: string;
  /** Base64 of PEM, or PEM. Default: the system's certificates. */
  readonly caBundle?: string;
  /** Name to expect in the certificate, where it is not the URL's host. */
  readonly serverName?: string;
  /** SHA-256 of the certificate's public key, lower-case hexadecimal. */
  readonly spkiSHA256?: string;
}

const keepAliveMs = 15_000;

/** What is spoken over a connection. A way that cannot tell the other side what it wants gives HTTP/1.1. */
export type Protocol = 'http/1.1' | 'h2';

export type Dial = (protocol?: Protocol) => Promise<Duplex>;

/**
 * TLS to the endpoint. A pin without a CA bundle is the whole identity: the key itself is known, so neither chain nor name
 * nor expiry can add to it. With a CA bundle, or without a pin, chain and name are checked as everywhere.
 */
export function dialTls(endpoint: Endpoint, timeoutSeconds: number): Dial {
  const start = tlsTo(endpoint, timeoutSeconds);
  return (protocol = 'http/1.1') => start(protocol);
}

export type StartTls = (
  protocol: Protocol,
  /** A connection that stands, instead of one of TCP. */
  over?: Duplex,
  /** The only key to take, beside what the endpoint says. */
  alsoPinned?: string,
) => Promise<tls.TLSSocket>;

/** What to do about a certificate that is not taken: where it is said which to take. */
export interface Advice {
  readonly trust: string;
  readonly repin: string;
}

export const adviceFor = (field: string, who = 'the provider'): Advice => ({
  trust: `set ${field}.caBundle, serverName or spkiSHA256 to what ${who} published`,
  repin: `if ${who} changed its key, set ${field}.spkiSHA256 to the new one`,
});

export function tlsTo(
  endpoint: Endpoint,
  timeoutSeconds: number,
  advice: Advice = adviceFor('spec.endpoint'),
): StartTls {
  const url = new URL(endpoint.url);
  if (url.protocol !== 'https:') throw new TypeError(`${endpoint.url}: a gateway is reached by https only`);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const port = Number(url.port || 443);
  const name = endpoint.serverName ?? host;
  const secureContext = tls.createSecureContext({
    minVersion: 'TLSv1.2',
    ...(endpoint.caBundle === undefined ? {} : { ca: pemOf(endpoint.caBundle) }),
  });

  // Every stream of a pod is a connection of its own: taking up the last session spares it the key exchange's signatures.
  // It holds for the pins that were looked at when it was made.
  let session: { readonly ticket: Buffer; readonly pins: string } | undefined;

  return (protocol, over, alsoPinned) =>
    new Promise((resolve, reject) => {
      const pins = [endpoint.spkiSHA256, alsoPinned].filter((pin) => pin !== undefined);
      const pinsText = pins.join(' ');
      const pinOnly = pins.length > 0 && endpoint.caBundle === undefined;
      const options: tls.ConnectionOptions & { allowHalfOpen: boolean } = {
        ...(over ? { socket: over } : { host, port }),
        secureContext,
        ...(session?.pins === pinsText ? { session: session.ticket } : {}),
        rejectUnauthorized: !pinOnly,
        ALPNProtocols: [protocol],
        // Of use to what is piped through. Who speaks HTTP/2 has to hear at once that the other side is gone.
        allowHalfOpen: protocol !== 'h2',
        // SNI carries names only.
        ...(isIP(name) ? {} : { servername: name }),
        checkServerIdentity: (_, certificate) => (pinOnly ? undefined : tls.checkServerIdentity(name, certificate)),
      };
      const socket = tls.connect(options);
      // On a connection that was handed in, that connection's own setting counts for Node.
      if (over) socket.allowHalfOpen = protocol !== 'h2';
      const timer = setTimeout(
        () =>
          socket.destroy(
            new UnknownOutcomeError(`${url.host}: no connection within ${timeoutSeconds} s`, { neverSent: true }),
          ),
        timeoutSeconds * 1000,
      );
      const settle = () => {
        clearTimeout(timer);
        socket.off('error', onError);
        socket.off('close', onClose);
      };
      const onError = (error: Error) => {
        settle();
        session = undefined;
        reject(errorOf(error, url.host, advice));
      };
      // Of a connection that was handed in and broke, no error may be heard here.
      const onClose = () => onError(new Error('the connection was broken off'));
      socket.once('error', onError);
      socket.once('close', onClose);
      socket.once('secureConnect', () => {
        settle();
        // A session shows no certificate when it is taken up, and only the holder of the key that was looked at has it.
        const known = pins.length === 0 || socket.isSessionReused();
        const found = known ? undefined : spkiOf(socket);
        const wrong = known ? undefined : pins.find((pin) => pin !== found);
        if (wrong !== undefined) {
          socket.destroy();
          reject(
            new IdentityMismatchError(
              wrong === alsoPinned
                ? `${url.host}: the certificate's key is ${found ?? 'not known'}, but the provider signed for ${wrong}: somebody else answers`
                : `${url.host}: the certificate's key is ${found ?? 'not known'}, but ${wrong} is pinned: ${advice.repin}`,
            ),
          );
          return;
        }
        socket.on('session', (ticket) => {
          session = { ticket, pins: pinsText };
        });
        if (!over) {
          socket.setNoDelay(true);
          // A path that is gone without a word is found out in half a minute, also by a stream on which nothing is due.
          socket.setKeepAlive(true, keepAliveMs);
        }
        resolve(socket);
      });
    });
}

function spkiOf(socket: tls.TLSSocket): string | undefined {
  const key = socket.getPeerX509Certificate()?.publicKey.export({ type: 'spki', format: 'der' });
  return key && createHash('sha256').update(key).digest('hex');
}

const pemOf = (bundle: string): string =>
  bundle.includes('-----BEGIN') ? bundle : Buffer.from(bundle, 'base64').toString('utf8');

/** Codes by which OpenSSL and Node say that a certificate is not to be trusted. */
const notTrusted =
  /^(CERT_|UNABLE_TO_|DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT_IN_CHAIN|ERR_TLS_CERT_ALTNAME_INVALID|INVALID_PURPOSE|HOSTNAME_MISMATCH|EE_KEY_TOO_SMALL|CA_MD_TOO_WEAK)/;

function errorOf(error: Error & { code?: string }, host: string, advice: Advice): Error {
  if (error instanceof UnknownOutcomeError) return error;
  if (error.code !== undefined && notTrusted.test(error.code))
    return new IdentityMismatchError(`${host}: the certificate is not trusted (${error.code}): ${advice.trust}`, {
      cause: error,
    });
  return new UnknownOutcomeError(`${host}: ${error.message || error.code || 'the connection failed'}`, {
    neverSent: true,
    cause: error,
  });
}
