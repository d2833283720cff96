/**
 * Certificates of a local control plane, made in this process: ECDSA P-256, no openssl.
 *
 * Three authorities, as a real control plane has them: the cluster's own (users, nodes, serving), etcd's and the front
 * proxy's. Were they one, any client of the API server could read etcd, or name itself anybody by a request header.
 */
import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type JsonName,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509';

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const YEAR_MS = 365 * 24 * 3600 * 1000;
// Clocks of containers and hosts differ by seconds; a certificate that is not valid yet is a confusing failure.
const BACKDATE_MS = 5 * 60 * 1000;

export interface KeyPem {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
}

export interface Authority {
  readonly caPem: string;
  readonly caKeyPem: string;
  issue(request: CertificateRequest): Promise<KeyPem>;
}

export interface CertificateRequest {
  readonly commonName: string;
  readonly organizations?: readonly string[];
  /** DNS names and IP addresses; with them it is a serving certificate. */
  readonly hosts?: readonly string[];
  readonly use: 'client' | 'server' | 'both';
}

export async function createAuthority(commonName: string, now: Date): Promise<Authority> {
  const keys = await generateKeys();
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: [{ CN: [commonName] }],
    notBefore: new Date(now.getTime() - BACKDATE_MS),
    notAfter: new Date(now.getTime() + YEAR_MS),
    signingAlgorithm: algorithm,
    keys,
    extensions: [
      new BasicConstraintsExtension(true, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign | KeyUsageFlags.digitalSignature, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey, false),
    ],
  });
  return authority(certificate, keys, await privateKeyPem(keys), now);
}

/** An authority that was written to files. */
export async function openAuthority(caPem: string, caKeyPem: string, now: Date): Promise<Authority> {
  const certificate = new X509Certificate(caPem);
  const pkcs8 = PemConverter.decodeFirst(caKeyPem);
  const privateKey = await webcrypto.subtle.importKey('pkcs8', pkcs8, algorithm, true, ['sign']);
  const publicKey = await certificate.publicKey.export();
  return authority(certificate, { privateKey, publicKey }, caKeyPem, now);
}

function authority(
  certificate: X509Certificate,
  keys: webcrypto.CryptoKeyPair,
  caKeyPem: string,
  now: Date,
): Authority {
  return {
    caPem: `${certificate.toString('pem')}\n`,
    caKeyPem,
    async issue({ commonName, organizations = [], hosts = [], use }) {
      const own = await generateKeys();
      const name: JsonName = [...organizations.map((o) => ({ O: [o] })), { CN: [commonName] }];
      const usages = [
        ...(use === 'server' ? [] : [ExtendedKeyUsage.clientAuth]),
        ...(use === 'client' ? [] : [ExtendedKeyUsage.serverAuth]),
      ];
      const issued = await X509CertificateGenerator.create({
        serialNumber: serialNumber(),
        subject: name,
        issuer: certificate.subject,
        notBefore: new Date(now.getTime() - BACKDATE_MS),
        notAfter: new Date(now.getTime() + YEAR_MS),
        signingAlgorithm: algorithm,
        publicKey: own.publicKey,
        signingKey: keys.privateKey,
        extensions: [
          new BasicConstraintsExtension(false, undefined, true),
          new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
          new ExtendedKeyUsageExtension(usages),
          await AuthorityKeyIdentifierExtension.create(keys.publicKey, false),
          ...(hosts.length > 0
            ? [new SubjectAlternativeNameExtension(hosts.map((h) => ({ type: isIP(h) ? 'ip' : 'dns', value: h })))]
            : []),
        ],
      });
      return { certificatePem: `${issued.toString('pem')}\n`, privateKeyPem: await privateKeyPem(own) };
    },
  };
}

/** A key pair that is not certified: the one that signs service account tokens. */
export async function createKeyPem(): Promise<{ readonly privateKeyPem: string; readonly publicKeyPem: string }> {
  const keys = await generateKeys();
  const spki = await webcrypto.subtle.exportKey('spki', keys.publicKey);
  return { privateKeyPem: await privateKeyPem(keys), publicKeyPem: `${PemConverter.encode(spki, 'PUBLIC KEY')}\n` };
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

async function privateKeyPem(keys: webcrypto.CryptoKeyPair): Promise<string> {
  const pkcs8 = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  return `${PemConverter.encode(pkcs8, 'PRIVATE KEY')}\n`;
}

function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x01; // positive, and no leading zero to trip over
  return Buffer.from(bytes).toString('hex');
}
