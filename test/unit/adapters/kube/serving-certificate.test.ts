import { X509Certificate } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import {
  createCertificateApprover,
  reviewServingRequest,
  servingCertificates,
  signerName,
} from '../../../../operator/adapters/kube/serving-certificate.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

interface Csr extends KubeObject {
  spec: { request: string; signerName: string; usages: string[]; username?: string };
  status?: { conditions?: { type: string; message?: string }[] };
}
const now = () => new Date();
const rules = {
  isOurNode: (name: string) => name === 'gpu-a',
  addresses: ['10.0.0.9'],
  requesters: ['operator'],
};

/** What `signed` asks for. */
async function asked(node: string, address: string, change: (csr: Csr) => void = () => undefined): Promise<Csr> {
  const cluster = fakeCluster();
  let csr: Csr | undefined;
  cluster.intercept((request) => {
    if (request.method === 'POST') csr = request.body as Csr;
    return undefined;
  });
  await servingCertificates({ cluster, now, waitSeconds: 0, log: silentLog }).signed(node, address);
  csr!.spec.username = 'operator';
  change(csr!);
  return csr!;
}

describe('requests for serving certificates', () => {
  test.each<[string, () => Promise<Csr>, 'approved' | 'left alone' | RegExp]>([
    ['of our node for our address', () => asked('gpu-a', '10.0.0.9'), 'approved'],
    ['of another node', () => asked('worker-1', '10.0.0.9'), 'left alone'],
    [
      'for another signer',
      () =>
        asked('gpu-a', '10.0.0.9', (c) => {
          c.spec.signerName = 'kubernetes.io/legacy';
        }),
      'left alone',
    ],
    [
      'that are none',
      () =>
        asked('gpu-a', '10.0.0.9', (c) => {
          c.spec.request = 'eHg=';
        }),
      'left alone',
    ],
    ['for another address', () => asked('gpu-a', '10.0.0.1'), /alternative names must be 10\.0\.0\.9, not 10\.0\.0\.1/],
    ['for a name', () => asked('gpu-a', 'kubernetes.default.svc'), /alternative names/],
    [
      'by somebody else',
      () =>
        asked('gpu-a', '10.0.0.9', (c) => {
          c.spec.username = 'mallory';
        }),
      /mallory may not ask/,
    ],
    [
      'to be a client too',
      () =>
        asked('gpu-a', '10.0.0.9', (c) => {
          c.spec.usages.push('client auth');
        }),
      /usages/,
    ],
  ])('%s', async (_, make, expected) => {
    const verdict = await reviewServingRequest(await make(), rules);
    if (expected === 'left alone') expect(verdict).toBeUndefined();
    else if (expected === 'approved') expect(verdict).toEqual({ approve: true });
    else expect(verdict).toMatchObject({ approve: false, why: expect.stringMatching(expected) });
  });

  test('are decided as they come, each once', async () => {
    const cluster = fakeCluster();
    // The approval subresource takes the conditions, and nothing else.
    cluster.intercept((request) => {
      if (request.subresource !== 'approval') return undefined;
      const { status } = request.body as Csr;
      const changed = cluster.change<Csr>(resources.csrs, { name: request.name! }, (csr) => {
        csr.status = { ...csr.status, conditions: status?.conditions };
      });
      return { code: 200, body: changed };
    });
    const stop = new AbortController();
    const running = createCertificateApprover({ cluster, ...rules, now, log: silentLog }).run(stop.signal);
    const [good, bad] = [await asked('gpu-a', '10.0.0.9'), await asked('gpu-a', '10.6.6.6')];
    cluster.seed<Csr>(resources.csrs, { ...good, metadata: { name: 'good' } }, { ...bad, metadata: { name: 'bad' } });
    const types = (name: string) =>
      cluster.object<Csr>(resources.csrs, { name })?.status?.conditions?.map((c) => c.type);
    await expect.poll(() => [types('good'), types('bad')]).toEqual([['Approved'], ['Denied']]);
    stop.abort(new Error('done'));
    await running;
    expect(cluster.writes).toHaveLength(2);
  });
});

describe('certificates', () => {
  test('where nobody signs there is none, and no request is left behind', async () => {
    const cluster = fakeCluster();
    const certificates = servingCertificates({ cluster, now, waitSeconds: 0.3, log: silentLog });
    expect(await certificates.signed('gpu-a', '10.0.0.9')).toBeUndefined();
    expect(cluster.objects(resources.csrs)).toEqual([]);
    expect(signerName).toBe('kubernetes.io/kubelet-serving');
  });

  test('of our own making are for the node and its address, and renewed in time', async () => {
    const own = await servingCertificates({ cluster: fakeCluster(), now, log: silentLog }).selfSigned(
      'gpu-a',
      '10.0.0.9',
    );
    const certificate = new X509Certificate(own.certificatePem);
    expect(certificate.checkIP('10.0.0.9')).toBe('10.0.0.9');
    expect(certificate.subject).toBe('O=system:nodes\nCN=system:node:gpu-a');
    expect(certificate.validFromDate.getTime()).toBeLessThan(Date.now());
    expect(own.renewAt.getTime()).toBeLessThan(certificate.validToDate.getTime());
    expect(own.privateKeyPem).toMatch(/^-----BEGIN PRIVATE KEY-----\n/);
  });
});
