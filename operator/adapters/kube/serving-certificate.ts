/**
 * Certificates for the kubelet API of virtual nodes: asked for by CertificateSigningRequest, signed by the cluster
 * (`kubernetes.io/kubelet-serving`), and self-signed where nobody signs. API servers verify them only when they run with
 * --kubelet-certificate-authority.
 *
 * The cluster's signer checks the form (O=system:nodes, CN=system:node:…, a SAN, usages) and not whose node it is; it wants
 * an approval first. So asking and approving are two, and may run as two service accounts:
 *
 *   asking      certificatesigningrequests: create, get, delete
 *   approving   certificatesigningrequests: list, watch; certificatesigningrequests/approval: update;
 *               signers kubernetes.io/kubelet-serving: approve
 */
import 'reflect-metadata';
import { randomBytes, webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import * as x509 from '@peculiar/x509';
import { isConflict, isNotFound } from '../../engine/errors.ts';
import { createInformer } from '../../engine/informer.ts';
import { type Cluster, type KubeObject, type Log, type Resource, resources } from '../../engine/types.ts';

x509.cryptoProvider.set(webcrypto);

export const signerName = 'kubernetes.io/kubelet-serving';
const usages = ['digital signature', 'server auth'];
const keyAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const selfSignedDays = 365;
/** Of its life, a certificate is used this much before the next one is asked for: not all nodes at once. */
const renewAfter = { least: 0.7, most: 0.9 };
/** Between looks: at first, and at most. A thousand nodes may start at once. */
const firstPollMs = 200;
const longestPollMs = 1600;

export interface Issued {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  readonly renewAt: Date;
  readonly expiresAt: Date;
}

interface SigningRequest extends KubeObject {
  spec: {
    request: string;
    signerName: string;
    usages: string[];
    username?: string;
    expirationSeconds?: number;
  };
  status?: {
    certificate?: string;
    conditions?: { type: string; status: string; reason?: string; message?: string; lastUpdateTime?: string }[];
  };
}

export function servingCertificates(options: {
  readonly cluster: Cluster;
  readonly now: () => Date;
  readonly waitSeconds?: number;
  /** How long certificates should hold; the signer may give less. Default: as long as the signer pleases. */
  readonly expirationSeconds?: number;
  readonly log: Log;
}) {
  const { cluster, now, log } = options;

  return {
    async selfSigned(nodeName: string, address: string): Promise<Issued> {
      const keys = await newKeys();
      const notBefore = new Date(now().getTime() - 5 * 60_000);
      const notAfter = new Date(now().getTime() + selfSignedDays * 86_400_000);
      const certificate = await x509.X509CertificateGenerator.createSelfSigned({
        serialNumber: randomBytes(16).toString('hex'),
        name: subjectOf(nodeName),
        notBefore,
        notAfter,
        keys,
        signingAlgorithm: keyAlgorithm,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
          sanOf(address),
        ],
      });
      return issued(certificate.toString('pem'), keys);
    },

    async signed(nodeName: string, address: string, signal?: AbortSignal): Promise<Issued | undefined> {
      const keys = await newKeys();
      const request = await x509.Pkcs10CertificateRequestGenerator.create({
        name: subjectOf(nodeName),
        keys,
        signingAlgorithm: keyAlgorithm,
        extensions: [sanOf(address)],
      });
      const name = `${nodeName.slice(0, 200)}-${randomBytes(5).toString('hex')}`;
      const asked: SigningRequest = {
        metadata: { name },
        spec: {
          request: Buffer.from(request.toString('pem')).toString('base64'),
          signerName,
          usages,
          ...(options.expirationSeconds !== undefined && { expirationSeconds: options.expirationSeconds }),
        },
      };
      await cluster.create(resources.csrs, asked, signal);
      const until = performance.now() + (options.waitSeconds ?? 5) * 1000;
      try {
        for (let pollMs = firstPollMs; performance.now() < until; pollMs = Math.min(pollMs * 2, longestPollMs)) {
          await pause(pollMs, signal);
          const found = await cluster.get<SigningRequest>(resources.csrs, { name }, signal);
          const refused = found?.status?.conditions?.find((c) => c.type === 'Denied' || c.type === 'Failed');
          if (refused) {
            log.warn({ node: nodeName, why: refused.message }, 'the serving certificate was refused');
            return undefined;
          }
          if (!found) return undefined;
          if (found.status?.certificate) {
            const pem = Buffer.from(found.status.certificate, 'base64').toString('utf8');
            return await issued(pem, keys);
          }
        }
        log.debug({ node: nodeName }, 'nobody signed the serving certificate in time');
        return undefined;
      } finally {
        await cluster.delete(resources.csrs, { name }).catch((error: unknown) => {
          // The cluster's own cleaner takes it after a while.
          log.debug({ name, error }, 'a certificate request could not be deleted');
        });
      }
    },
  };
}

/** Approves what our virtual nodes ask for, and nothing else. Requests for other nodes are left to others. */
export function createCertificateApprover(options: {
  readonly cluster: Cluster;
  readonly isOurNode: (name: string, signal: AbortSignal) => boolean | Promise<boolean>;
  /** Those of our virtual nodes; asked anew for each request where they may change. */
  readonly addresses: readonly string[] | ((signal: AbortSignal) => Promise<readonly string[]>);
  /** User names that may ask: that of the operator. See `whoAmI`. */
  readonly requesters: readonly string[];
  readonly now: () => Date;
  readonly log: Log;
}): { run(signal: AbortSignal): Promise<void> } {
  const { cluster, log } = options;
  const informer = createInformer<SigningRequest>({
    cluster,
    resource: resources.csrs,
    fieldSelector: `spec.signerName=${signerName}`,
    log,
  });

  async function decide(request: SigningRequest, signal: AbortSignal): Promise<void> {
    const settled = request.status?.conditions?.some((c) => ['Approved', 'Denied', 'Failed'].includes(c.type));
    if (settled || request.metadata.deletionTimestamp) return;
    const node = nodeOfRequest(request);
    const isOurs = node !== undefined && (await options.isOurNode(node, signal));
    if (!isOurs) return;
    const verdict = await reviewServingRequest(request, {
      isOurNode: (name) => name === node,
      addresses: typeof options.addresses === 'function' ? await options.addresses(signal) : options.addresses,
      requesters: options.requesters,
    });
    if (verdict === undefined) return;
    const lastUpdateTime = options.now().toISOString();
    const condition =
      verdict.approve === true
        ? {
            type: 'Approved',
            reason: 'VirtualNode',
            message: 'A virtual node of this cluster asks for its own address.',
          }
        : { type: 'Denied', reason: 'NotAsExpected', message: verdict.why };
    await cluster.replace(
      resources.csrs,
      {
        ...request,
        status: { ...request.status, conditions: [{ ...condition, status: 'True', lastUpdateTime }] },
      },
      { subresource: 'approval' },
      signal,
    );
  }

  return {
    async run(signal) {
      const stop = informer.onChange(({ type, object }) => {
        if (type === 'deleted') return;
        decide(object, signal).catch((error: unknown) => {
          if (signal.aborted || isNotFound(error) || isConflict(error)) return;
          log.warn({ name: object.metadata.name, error }, 'a certificate request could not be decided');
        });
      });
      try {
        await informer.run(signal);
      } finally {
        stop();
      }
    },
  };
}

/** The node that a request for a serving certificate is about; undefined: it is about something else. */
function nodeOfRequest(request: Pick<SigningRequest, 'spec'>): string | undefined {
  if (request.spec.signerName !== signerName) return undefined;
  try {
    const pem = Buffer.from(request.spec.request, 'base64').toString('utf8');
    const names = new x509.Pkcs10CertificateRequest(pem).subjectName.getField('CN');
    return /^system:node:(.+)$/.exec(names[0] ?? '')?.[1];
  } catch {
    return undefined;
  }
}

/** Undefined: not about a node of ours. */
export async function reviewServingRequest(
  request: Pick<SigningRequest, 'spec'>,
  rules: {
    readonly isOurNode: (name: string) => boolean;
    readonly addresses: readonly string[];
    readonly requesters: readonly string[];
  },
): Promise<{ approve: true } | { approve: false; why: string } | undefined> {
  if (request.spec.signerName !== signerName) return undefined;
  let parsed: x509.Pkcs10CertificateRequest;
  try {
    parsed = new x509.Pkcs10CertificateRequest(Buffer.from(request.spec.request, 'base64').toString('utf8'));
  } catch {
    return undefined;
  }
  const names = parsed.subjectName.toJSON();
  const field = (key: string) => names.flatMap((part) => part[key] ?? []);
  const [commonName] = field('CN');
  const node = /^system:node:(.+)$/.exec(commonName ?? '')?.[1];
  if (node === undefined || !rules.isOurNode(node)) return undefined;

  const refuse = (why: string) => ({ approve: false as const, why });
  if (!rules.requesters.includes(request.spec.username ?? ''))
    return refuse(`${request.spec.username ?? 'nobody'} may not ask for certificates of virtual nodes`);
  const subjectParts = names.flatMap((part) =>
    Object.entries(part).flatMap(([key, values]) => values.map((v) => `${key}=${v}`)),
  );
  const expected = [`CN=${commonName}`, 'O=system:nodes'];
  if (subjectParts.length !== expected.length || !expected.every((part) => subjectParts.includes(part)))
    return refuse('the subject must be O=system:nodes, CN=system:node:<name> and nothing else');
  const asked = [...request.spec.usages].sort().join(', ');
  if (asked !== [...usages].sort().join(', ')) return refuse(`usages must be ${usages.join(' and ')}`);
  const extension = parsed.extensions.find((e) => e instanceof x509.SubjectAlternativeNameExtension);
  const san = extension?.names.items ?? [];
  const stranger = san.find(
    ({ type, value }) => !((type === 'ip' || type === 'dns') && rules.addresses.includes(value)),
  );
  if (san.length === 0 || stranger)
    return refuse(
      `alternative names must be ${rules.addresses.join(', ')}, not ${stranger?.value.slice(0, 100) ?? 'none'}`,
    );
  if (!(await parsed.verify())) return refuse('the request is not signed with its own key');
  return { approve: true };
}

const selfSubjectReviews: Resource = {
  group: 'authentication.k8s.io',
  version: 'v1',
  plural: 'selfsubjectreviews',
  kind: 'SelfSubjectReview',
  namespaced: false,
};

/** The name by which the cluster knows these credentials. */
export async function whoAmI(cluster: Cluster, signal?: AbortSignal): Promise<string> {
  const review: KubeObject & { status?: { userInfo?: { username?: string } } } = { metadata: { name: '' } };
  const { status } = await cluster.create(selfSubjectReviews, review, signal);
  return status?.userInfo?.username ?? '';
}

const subjectOf = (nodeName: string): x509.JsonName => [{ O: ['system:nodes'] }, { CN: [`system:node:${nodeName}`] }];

const sanOf = (address: string) =>
  new x509.SubjectAlternativeNameExtension([{ type: isIP(address) ? 'ip' : 'dns', value: address }]);

const newKeys = (): Promise<webcrypto.CryptoKeyPair> =>
  webcrypto.subtle.generateKey(keyAlgorithm, true, ['sign', 'verify']);

async function issued(certificatePem: string, keys: webcrypto.CryptoKeyPair): Promise<Issued> {
  const certificate = new x509.X509Certificate(certificatePem);
  const { notBefore, notAfter } = certificate;
  const share = renewAfter.least + Math.random() * (renewAfter.most - renewAfter.least);
  const key = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey));
  const body = key
    .toString('base64')
    .replace(/(.{64})/g, '$1\n')
    .trimEnd();
  return {
    certificatePem,
    privateKeyPem: `-----BEGIN PRIVATE KEY-----\n${body}\n-----END PRIVATE KEY-----\n`,
    renewAt: new Date(notBefore.getTime() + (notAfter.getTime() - notBefore.getTime()) * share),
    expiresAt: notAfter,
  };
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}
