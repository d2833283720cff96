/** What goes through the narrow proxy, and as whom. */
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
let lease: Awaited<ReturnType<ProviderSide['lease']>>;
let namespace: string;
beforeEach(async () => {
  side = await startProviderSide();
  lease = await side.lease();
  namespace = tenantNamespace(lease.leaseId);
});
afterEach(() => side.stop());

const pod = (name: string, more: object = {}) => ({
  metadata: { name },
  spec: { containers: [{ name: 'main', image: 'busybox', ...more }] },
});

async function ask(method: 'GET' | 'POST' | 'PUT' | 'DELETE', path: string, body?: object, accept?: string) {
  const response = await side.gateway.app.inject({
    method,
    url: `/v1/leases/${lease.leaseId}/kube/${path}`,
    headers: {
      authorization: `Bearer ${lease.token}`,
      ...(body ? { 'content-type': 'application/json' } : {}),
      ...(accept ? { accept } : {}),
    },
    payload: body ? JSON.stringify(body) : undefined,
  });
  return {
    status: response.statusCode,
    body: JSON.parse(response.body) as Record<string, never>,
    headers: response.headers,
  };
}

const tenantRequests = () => side.cluster.requests.filter((request) => request.as !== undefined);

test('a pod is created in the tenant’s namespace, as the tenant’s account, never with the caller’s token', async () => {
  expect(await ask('POST', 'pods', pod('train'))).toMatchObject({
    status: 201,
    body: { metadata: { name: 'train', namespace } },
  });
  expect(side.cluster.object(resources.pods, { namespace, name: 'train' })).toMatchObject({
    spec: { automountServiceAccountToken: false, affinity: expect.anything() },
  });
  const sent = tenantRequests();
  expect(sent).toHaveLength(1);
  expect(sent[0]!.as).not.toContain(lease.token);
  expect(sent[0]!.headers).not.toHaveProperty('authorization');
});

test('who accepts metadata alone is answered so where something is made or deleted, and nobody else', async () => {
  const brief = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';
  const asked = async (...request: Parameters<typeof ask>) => {
    const before = tenantRequests().length;
    await ask(...request);
    return tenantRequests()
      .slice(before)
      .map(({ headers }) => headers.accept);
  };
  const both = `${brief},application/json`;
  expect(await asked('POST', 'pods', pod('a'), both)).toEqual([both]);
  expect(await asked('POST', 'pods', pod('b'))).toEqual(['application/json']);
  expect(await asked('POST', 'pods', pod('c'), 'text/plain')).toEqual(['application/json']);
  expect(await asked('GET', 'pods/a', undefined, both)).toEqual(['application/json']);
  expect(await asked('DELETE', 'pods/a', undefined, `${both};q=0.9`)).toEqual([both]);
});

test('what the API server says no to keeps its word', async () => {
  expect(await ask('GET', 'pods/absent')).toMatchObject({ status: 404, body: { reason: 'NotFound', status: 404 } });
  await ask('POST', 'pods', pod('train'));
  expect(await ask('POST', 'pods', pod('train'))).toMatchObject({ status: 409, body: { reason: 'AlreadyExists' } });
  expect(await ask('DELETE', 'pods/train?uid=another')).toMatchObject({ status: 409, body: { reason: 'Conflict' } });
});

test.each([
  [
    'a full quota',
    {
      code: 403,
      body: { kind: 'Status', reason: 'Forbidden', message: 'pods "x" is forbidden: exceeded quota: lease' },
    },
    409,
    'CapacityExhausted',
  ],
  [
    'pod security',
    { code: 403, body: { kind: 'Status', reason: 'Forbidden', message: 'violates PodSecurity "baseline"' } },
    422,
    'PodRefused',
  ],
  [
    'a pod that is not valid',
    { code: 422, body: { kind: 'Status', reason: 'Invalid', message: 'spec.containers[0].image: Required value' } },
    422,
    'PodRefused',
  ],
  [
    'too many requests',
    { code: 429, body: { kind: 'Status', reason: 'TooManyRequests' }, headers: { 'retry-after': '3' } },
    429,
    'TooManyRequests',
  ],
  ['a broken API server', { code: 500, body: 'panic: stack trace at main.go:7' }, 502, undefined],
])('%s', async (_name, answer, status, reason) => {
  side.cluster.intercept(({ method, resource }) =>
    method === 'POST' && resource?.plural === 'pods' ? answer : undefined,
  );
  const told = await ask('POST', 'pods', pod('x'));
  expect(told.status).toBe(status);
  expect(told.body.reason).toBe(reason);
  expect(JSON.stringify(told.body)).not.toContain('main.go');
  if (status === 429) expect(told.headers['retry-after']).toBe('3');
});

test('a token that the API server no longer takes is replaced once', async () => {
  let refused = 0;
  side.cluster.intercept(({ as, path }) => {
    if (as === undefined || path.endsWith('/token') || refused > 0) return undefined;
    refused += 1;
    return { code: 401, body: { kind: 'Status', reason: 'Unauthorized' } };
  });
  expect(await ask('GET', 'pods')).toMatchObject({ status: 200 });
  expect(refused).toBe(1);
});

test('an API server that is silent is told as such', async () => {
  side.cluster.failNext({ method: 'GET', resource: 'pods', fail: 'unreachable' });
  expect(await ask('GET', 'pods')).toMatchObject({
    status: 502,
    body: { detail: expect.stringContaining('did not answer') },
  });
});

test('a pod is replaced in its image, and keeps where it runs', async () => {
  await ask('POST', 'pods', pod('train'));
  side.cluster.change<KubeObject & { spec: { nodeName?: string } }>(
    resources.pods,
    { namespace, name: 'train' },
    (one) => {
      one.spec.nodeName = 'node-a';
    },
  );
  const seen = (await ask('GET', 'pods/train')).body as unknown as { spec: { containers: { image: string }[] } };
  seen.spec.containers[0]!.image = 'busybox:2';
  expect(await ask('PUT', 'pods/train', seen)).toMatchObject({ status: 200 });
  expect(side.cluster.object(resources.pods, { namespace, name: 'train' })).toMatchObject({
    spec: { nodeName: 'node-a', containers: [{ image: 'busybox:2', env: [{ value: 'void' }] }] },
  });
  expect(await ask('PUT', 'pods/other', pod('train'))).toMatchObject({ status: 400 });
  expect(await ask('PUT', 'pods/gone', pod('gone'))).toMatchObject({ status: 404 });
});

test('a pod that was sent back with more rights than it had is refused', async () => {
  await ask('POST', 'pods', pod('train'));
  expect(await ask('PUT', 'pods/train', pod('train', { securityContext: { privileged: true } }))).toMatchObject({
    status: 422,
    body: { reason: 'PodRefused' },
  });
});

interface Running extends KubeObject {
  spec: {
    containers: { name: string; image: string; resources: { requests: Record<string, string>; limits: object } }[];
    ephemeralContainers?: { name: string; env?: object[] }[];
  };
}
const stored = (name: string) => side.cluster.object<Running>(resources.pods, { namespace, name });
const partsWritten = () =>
  tenantRequests()
    .filter(({ method }) => method === 'PUT')
    .map(({ subresource }) => subresource ?? 'pod');

test('a pod that is sent anew is written in as many ways as it changed, with the tenant’s account', async () => {
  await ask('POST', 'pods', pod('train', { resources: { requests: { cpu: '1' } } }));
  const anew = {
    metadata: { name: 'train', annotations: { 'gpulease.dev/carried': 'x' } },
    spec: {
      containers: [{ name: 'main', image: 'busybox:2', resources: { requests: { cpu: '1500m' } } }],
      ephemeralContainers: [{ name: 'debug', image: 'busybox' }],
    },
  };
  expect(await ask('PUT', 'pods/train', anew)).toMatchObject({ status: 200, body: { metadata: { name: 'train' } } });
  expect(partsWritten()).toEqual(['ephemeralcontainers', 'pod', 'resize']);
  expect(stored('train')).toMatchObject({
    metadata: { annotations: { 'gpulease.dev/carried': 'x' } },
    spec: {
      containers: [{ image: 'busybox:2', resources: { requests: { cpu: '1500m' } } }],
      ephemeralContainers: [{ name: 'debug', env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'void' }] }],
    },
  });
  expect(await ask('PUT', 'pods/train', anew)).toMatchObject({ status: 200 });
  expect(partsWritten()).toHaveLength(3);
});

test('resources beyond the lease are refused, and the rest of the change is carried out', async () => {
  await ask('POST', 'pods', pod('train', { resources: { requests: { cpu: '1' } } }));
  const more = { image: 'busybox:2', resources: { requests: { cpu: '4000' } } };
  const told = await ask('PUT', 'pods/train', pod('train', more));
  expect(told).toMatchObject({
    status: 422,
    body: { reason: 'ResizeRefused', errors: [{ field: 'spec.containers[0].resources.requests[cpu]' }] },
  });
  expect(stored('train')?.spec.containers[0]).toMatchObject({
    image: 'busybox:2',
    resources: { requests: { cpu: '1' } },
  });
});

test.each([
  [
    'a Kubernetes that cannot resize',
    404,
    'NotFound',
    'the server could not find the requested resource',
    422,
    /1\.33/,
  ],
  ['one that says no', 422, 'Invalid', 'Pod QOS Class may not change as a result of resizing', 422, /QOS Class/],
  ['a quota that is full', 403, 'Forbidden', 'pods "train" is forbidden: exceeded quota: lease', 409, /no room/],
])('of %s, the consumer hears', async (_name, code, reason, message, status, words) => {
  await ask('POST', 'pods', pod('train', { resources: { requests: { cpu: '1' } } }));
  side.cluster.failNext({ method: 'PUT', subresource: 'resize', fail: code, reason, message });
  const told = await ask('PUT', 'pods/train', pod('train', { image: 'new', resources: { requests: { cpu: '2' } } }));
  expect(told).toMatchObject({
    status,
    body: {
      reason: status === 409 ? 'CapacityExhausted' : 'ResizeRefused',
      detail: expect.stringMatching(words),
    },
  });
  expect(stored('train')?.spec.containers[0]?.image).toBe('new');
});

test('a Secret may belong to a pod of the lease, by name and uid, and to nothing else', async () => {
  await ask('POST', 'pods', pod('train'));
  const { uid } = stored('train')!.metadata;
  const secret = (name: string, ownerReferences: object[]) => ({
    metadata: { name, ownerReferences },
    data: { t: 'eA==' },
  });
  const owner = { apiVersion: 'v1', kind: 'Pod', name: 'train', uid };
  expect(await ask('POST', 'secrets', secret('owned', [owner]))).toMatchObject({ status: 201 });
  expect(side.cluster.object(resources.secrets, { namespace, name: 'owned' })?.metadata.ownerReferences).toEqual([
    owner,
  ]);
  expect(await ask('PUT', 'secrets/owned', secret('owned', [owner]))).toMatchObject({ status: 200 });
  const wrong: object[][] = [
    [{ ...owner, uid: 'another' }],
    [{ ...owner, name: 'absent' }],
    [{ ...owner, kind: 'Node' }],
    [{ ...owner, apiVersion: 'apps/v1' }],
    [{ ...owner, blockOwnerDeletion: true }],
    [owner, owner],
  ];
  for (const references of wrong)
    expect((await ask('POST', 'secrets', secret('other', references))).status, JSON.stringify(references)).toBe(422);
  expect((await ask('POST', 'configmaps', { ...secret('c', [owner]), data: { a: 'b' } })).status).toBe(422);
});

test('lists and watches show the tenant’s own objects alone, as they come', async () => {
  side.cluster.seed(resources.pods, { metadata: { name: 'theirs', namespace: 'gl-other' } } as KubeObject);
  await ask('POST', 'pods', pod('mine'));
  expect((await ask('GET', 'pods')).body).toMatchObject({ items: [{ metadata: { name: 'mine' } }] });

  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as { port: number };
  const stop = new AbortController();
  const response = await fetch(`http://127.0.0.1:${port}/v1/leases/${lease.leaseId}/kube/pods?watch=true`, {
    headers: { authorization: `Bearer ${lease.token}` },
    signal: stop.signal,
  });
  expect(response.status).toBe(200);
  const reader = response.body!.getReader();
  await eventually(
    () => side.cluster.openWatches,
    (open) => open > 5,
  );
  await ask('POST', 'pods', pod('second'));
  let seen = '';
  while (!seen.includes('"second"')) seen += Buffer.from((await reader.read()).value ?? []).toString();
  const before = side.cluster.openWatches;
  stop.abort();
  // Whoever goes away takes its watch along.
  await eventually(
    () => side.cluster.openWatches,
    (open) => open < before,
  );
});

test('a watch on nothing, or a quiet log, is answered at once', async () => {
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as { port: number };
  const stop = new AbortController();
  const response = await fetch(`http://127.0.0.1:${port}/v1/leases/${lease.leaseId}/kube/events?watch=true`, {
    headers: { authorization: `Bearer ${lease.token}` },
    signal: AbortSignal.any([stop.signal, AbortSignal.timeout(5000)]),
  });
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toContain('application/json');
  stop.abort();
});

test('an answer that breaks off does not look whole', async () => {
  const stream = new PassThrough();
  side.cluster.intercept(({ path }) => (path.endsWith('/log') ? { code: 200, stream } : undefined));
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as { port: number };
  stream.write('first line\n');
  const response = await fetch(`http://127.0.0.1:${port}/v1/leases/${lease.leaseId}/kube/pods/a/log?follow=true`, {
    headers: { authorization: `Bearer ${lease.token}` },
  });
  setTimeout(() => stream.destroy(new Error('the kubelet is gone')), 50);
  await expect(response.text()).rejects.toThrow();
});

test('an object that breaks off is no answer at all', async () => {
  const stream = new PassThrough();
  side.cluster.intercept(({ path }) => (path.endsWith('/pods/a') ? { code: 200, stream } : undefined));
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as { port: number };
  stream.write('{"kind":"Pod",');
  // On a busy machine before anybody reads it; then its error is nobody's.
  stream.on('error', () => undefined);
  setTimeout(() => stream.destroy(new Error('the API server is gone')), 50);
  await expect(
    fetch(`http://127.0.0.1:${port}/v1/leases/${lease.leaseId}/kube/pods/a`, {
      headers: { authorization: `Bearer ${lease.token}` },
    }),
  ).rejects.toThrow('fetch failed');
});

test('kube/node is the real node’s health in the size of the lease', async () => {
  expect((await ask('GET', 'node')).body).toMatchObject({
    kind: 'Node',
    metadata: { labels: { 'nvidia.com/gpu.memory': '24564' } },
    status: {
      capacity: { 'nvidia.com/gpu': '1' },
      conditions: [{ type: 'Ready', status: 'True' }],
      nodeInfo: { kubeletVersion: 'v1.36.3' },
    },
  });
  side.cluster.change<KubeObject & { status: { conditions: object[] } }>(
    resources.nodes,
    { name: 'node-a' },
    (node) => {
      node.status.conditions = [{ type: 'Ready', status: 'Unknown', message: 'Kubelet stopped posting node status.' }];
    },
  );
  await eventually(
    async () =>
      (await ask('GET', 'node')).body as unknown as { status: { conditions: { status: string; message: string }[] } },
    (node) => node.status.conditions[0]!.status === 'False',
  );
  expect(await side.get(`/v1/leases/${lease.leaseId}`, lease.token)).toMatchObject({
    body: { nodeReady: false, nodeMessage: 'Kubelet stopped posting node status.' },
  });
});

test('a lease that is going down starts nothing new, and lets its end be watched', async () => {
  await ask('POST', 'pods', pod('train'));
  side.cluster.change<KubeObject & { spec: { nodeName?: string } }>(
    resources.pods,
    { namespace, name: 'train' },
    (one) => {
      one.spec.nodeName = 'node-a';
    },
  );
  await side.post(`/v1/leases/${lease.leaseId}/release`, {}, lease.token);
  await eventually(
    async () => (await ask('POST', 'pods', pod('late'))).status,
    (status) => status === 410,
  );
  expect(await ask('GET', 'pods/train')).toMatchObject({ status: 200 });
});

test('many calls over one connection leave nothing behind on it', async () => {
  const warnings: string[] = [];
  const onWarning = (warning: Error) => warnings.push(warning.message);
  process.on('warning', onWarning);
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as { port: number };
  for (let call = 0; call < 30; call += 1) {
    const response = await fetch(`http://127.0.0.1:${port}/v1/leases/${lease.leaseId}`, {
      headers: { authorization: `Bearer ${lease.token}` },
    });
    await response.text();
  }
  await new Promise((resolve) => setTimeout(resolve, 20));
  process.off('warning', onWarning);
  expect(warnings.filter((warning) => warning.includes('MaxListeners'))).toEqual([]);
});
