/**
 * A certificate for a gateway that has none: self-signed, so consumers pin its public key (`spkiSHA256`). It is kept in a
 * Secret and renewed with the same key, so that the pin outlives restarts and renewals.
 */
import 'reflect-metadata';
import { createHash, createPublicKey, X509Certificate as NodeCertificate, webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import * as x509 from '@peculiar/x509';

export interface ServingCertificate {
  readonly cert: string;
  readonly key: string;
}

type KeyPair = webcrypto.CryptoKeyPair;

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const lifetimeDays = 825;
const dayMs = 86_400_000;

export async function selfSigned(hosts: readonly string[], now: Date, keyPem?: string): Promise<ServingCertificate> {
  x509.cryptoProvider.set(webcrypto as never);
  const keys = keyPem === undefined ? await newKeys() : await keysOf(keyPem);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: Buffer.from(webcrypto.getRandomValues(new Uint8Array(16))).toString('hex'),
      name: 'CN=gpulease-gateway',
      // Clocks of consumers may be behind.
      notBefore: new Date(now.getTime() - 3_600_000),
      notAfter: new Date(now.getTime() + lifetimeDays * dayMs),
      signingAlgorithm: algorithm,
      keys: keys as never,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
        new x509.SubjectAlternativeNameExtension(
          hosts.map((host) => ({ type: isIP(host) ? ('ip' as const) : ('dns' as const), value: host })),
        ),
      ],
    },
    webcrypto as never,
  );
  const exported = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey as webcrypto.CryptoKey);
  return { cert: certificate.toString('pem'), key: x509.PemConverter.encode(exported, 'PRIVATE KEY') };
}

const newKeys = () => webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']) as Promise<KeyPair>;

async function keysOf(pem: string): Promise<KeyPair> {
  const [der] = x509.PemConverter.decode(pem);
  const privateKey = await webcrypto.subtle.importKey('pkcs8', der as ArrayBuffer, algorithm, true, ['sign']);
  const spki = createPublicKey({ key: pem, format: 'pem' }).export({ type: 'spki', format: 'der' });
  const publicKey = await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']);
  return { privateKey, publicKey } as KeyPair;
}

/** SHA-256 of the public key, as GpuProvider.spec.endpoint.spkiSHA256 wants it. */
export function spkiSha256(certPem: string): string {
  const spki = new NodeCertificate(certPem).publicKey.export({ type: 'spki', format: 'der' });
  return createHash('sha256').update(spki).digest('hex');
}

/** Whether it should be made anew: within a month of its end, or without one of the names. */
export function needsRenewal(certPem: string, hosts: readonly string[], now: Date): boolean {
  const certificate = new NodeCertificate(certPem);
  if (Date.parse(certificate.validTo) - now.getTime() < 30 * dayMs) return true;
  return hosts.some((host) => (isIP(host) ? certificate.checkIP(host) : certificate.checkHost(host)) === undefined);
}
