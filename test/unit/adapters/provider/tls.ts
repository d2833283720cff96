/** Certificates for servers and clients on loopback, made on the spot. */
import { createHash, webcrypto, X509Certificate } from 'node:crypto';
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';

x509.cryptoProvider.set(webcrypto);
const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

export interface Pair {
  readonly cert: string;
  readonly key: string;
  /** SHA-256 of the public key. */
  readonly spki: string;
}

export interface Authority {
  readonly pem: string;
  issue(
    subject: x509.JsonName,
    options?: { san?: { type: 'ip' | 'dns'; value: string }[]; client?: boolean },
  ): Promise<Pair>;
}

/** What a gateway on loopback shows, under the name localhost, and the CA that its callers need. */
export async function localhostPair(): Promise<{ readonly ca: string; readonly pair: Pair }> {
  const made = await authority('ca');
  return {
    ca: made.pem,
    pair: await made.issue([{ CN: ['gateway'] }], { san: [{ type: 'dns', value: 'localhost' }] }),
  };
}

const newKeys = () => webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);

async function keyPem(keys: webcrypto.CryptoKeyPair): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey));
  return `-----BEGIN PRIVATE KEY-----\n${der.toString('base64')}\n-----END PRIVATE KEY-----\n`;
}

export const spkiOf = (cert: string): string =>
  createHash('sha256')
    .update(new X509Certificate(cert).publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex');

export async function authority(name: string): Promise<Authority> {
  const keys = await newKeys();
  const ca = await x509.X509CertificateGenerator.createSelfSigned({
    name: `CN=${name}`,
    keys,
    signingAlgorithm: algorithm,
    extensions: [new x509.BasicConstraintsExtension(true, undefined, true)],
  });
  return {
    pem: ca.toString('pem'),
    async issue(subject, options = {}) {
      const own = await newKeys();
      const certificate = await x509.X509CertificateGenerator.create({
        subject,
        issuer: ca.subject,
        publicKey: own.publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: algorithm,
        extensions: [
          new x509.ExtendedKeyUsageExtension([
            options.client ? x509.ExtendedKeyUsage.clientAuth : x509.ExtendedKeyUsage.serverAuth,
          ]),
          ...(options.san ? [new x509.SubjectAlternativeNameExtension(options.san)] : []),
        ],
      });
      const cert = certificate.toString('pem');
      return { cert, key: await keyPem(own), spki: spkiOf(cert) };
    },
  };
}
