/** Several writes in one request: each is counted, admitted, audited and answered as it would be alone. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type BatchedAnswer, batchedAnswer, maxBatchedCalls } from '../../../operator/api/gateway.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { resources } from '../../../operator/engine/types.ts';
import { type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
let lease: Awaited<ReturnType<ProviderSide['lease']>>;
let namespace: string;
const logged: Record<string, unknown>[] = [];
async function start(gateway: Parameters<typeof startProviderSide>[0] = {}): Promise<void> {
  logged.length = 0;
  const log = {
    ...silentLog,
    info: (fields: object) => void logged.push(fields as Record<string, unknown>),
    child: () => log,
  };
  side = await startProviderSide({ log, ...gateway });
  lease = await side.lease();
  namespace = tenantNamespace(lease.leaseId);
}
beforeEach(() => start());
afterEach(() => side.stop());

interface Call {
  readonly method: string;
  readonly path: string;
  readonly body?: unknown;
}
const pod = (name: string, more: object = {}): Call => ({
  method: 'POST',
  path: 'kube/pods',
  body: { metadata: { name }, spec: { containers: [{ name: 'main', image: 'busybox' }], ...more } },
});

async function batch(calls: readonly Call[], token = lease.token) {
  const response = await side.gateway.app.inject({
    method: 'POST',
    url: `/v1/leases/${lease.leaseId}/batch`,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    payload: JSON.stringify({ calls }),
  });
  return { status: response.statusCode, type: response.headers['content-type'], body: response.body };
}

async function answers(calls: readonly Call[]): Promise<BatchedAnswer[]> {
  const { status, type, body } = await batch(calls);
  expect([status, type]).toEqual([200, 'application/x-ndjson']);
  const lines = body.split('\n').filter((line) => line !== '');
  return lines.map((line) => batchedAnswer.parse(JSON.parse(line))).toSorted((a, b) => a.call - b.call);
}

test('each call has a status of its own, and what one is refused is no matter of the others', async () => {
  side.cluster.seed(resources.pods, ...['old', 'ending'].map((name) => ({ metadata: { name, namespace } })));
  const told = await answers([
    pod('new'),
    pod('old'),
    pod('spy', { hostNetwork: true }),
    { method: 'DELETE', path: 'kube/pods/ending?gracePeriodSeconds=5' },
    { method: 'DELETE', path: 'kube/pods/absent' },
    { method: 'POST', path: 'kube/configmaps', body: { metadata: { name: 'settings' }, data: { a: '1' } } },
  ]);
  expect(told.map(({ status }) => status)).toEqual([201, 409, 422, 200, 404, 201]);
  expect(told[0]!.body).toMatchObject({ metadata: { name: 'new', namespace } });
  expect(told[2]!.body).toMatchObject({ reason: 'PodRefused', detail: expect.stringContaining('spec.hostNetwork') });
  expect(told[4]!.body).toMatchObject({ reason: 'NotFound', status: 404 });
  expect(side.cluster.object(resources.pods, { namespace, name: 'new' })).toMatchObject({
    spec: { automountServiceAccountToken: false },
  });
  expect(side.cluster.object(resources.pods, { namespace, name: 'spy' })).toBeUndefined();
  const sent = side.cluster.requests.filter(({ as }) => as !== undefined);
  expect(new Set(sent.map(({ headers }) => headers.accept))).toEqual(
    new Set(['application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json']),
  );
  expect(sent.find(({ method }) => method === 'DELETE')?.body).toMatchObject({ gracePeriodSeconds: 5 });
});

test.each([
  ['everybody’s Secrets', 'DELETE', 'kube/api/v1/secrets', 404],
  ['nodes', 'DELETE', 'kube/nodes/a', 404],
  ['the way up', 'DELETE', 'kube/../../../../api/v1/namespaces', 404],
  ['the way up, hidden', 'DELETE', 'kube/pods/%2e%2e%2f%2e%2e%2fkube-system', 404],
  ['the pod’s status', 'POST', 'kube/pods/a/status', 404],
  ['all pods deleted', 'DELETE', 'kube/pods', 405],
  ['events made up', 'POST', 'kube/events', 405],
  ['an exec', 'POST', 'kube/pods/a/exec?command=sh', 405],
  ['a query that is not known', 'DELETE', 'kube/pods/a?dryRun=All', 400],
])('%s: no more than alone', async (_name, method, path, status) => {
  const before = side.cluster.requests.filter(({ as }) => as !== undefined).length;
  expect(await answers([{ method, path, body: {} }])).toMatchObject([{ status }]);
  expect(side.cluster.requests.filter(({ as }) => as !== undefined)).toHaveLength(before);
});

test.each([
  ['no call', [], 'calls'],
  ['too many', Array.from({ length: maxBatchedCalls + 1 }, (_, i) => pod(`p${i}`)), 'calls'],
  ['another method', [{ method: 'PUT', path: 'kube/pods/a', body: {} }], 'calls.0.method'],
  ['a path elsewhere', [pod('a'), { method: 'POST', path: 'release' }], 'calls.1.path'],
])('%s: refused as a whole, before anything is done', async (_name, calls, field) => {
  const { status, body } = await batch(calls);
  expect(status).toBe(400);
  expect(JSON.parse(body)).toMatchObject({ errors: [{ field }] });
  expect(side.cluster.requests.filter(({ as }) => as !== undefined)).toEqual([]);
});

test('who has no token of the lease gets nothing done', async () => {
  expect((await batch([pod('a')], 'abc.def')).status).toBe(401);
  const other = await side.lease();
  expect((await batch([pod('a')], other.token)).status).toBe(401);
});

test('each call counts against the wallet, and those past its limit are told when to try again', async () => {
  await side.stop();
  await start({ gateway: { walletRequestsPerSecond: 1 } });
  const told = await answers(Array.from({ length: 20 }, (_, i) => pod(`p${i}`)));
  const made = told.filter(({ status }) => status === 201);
  expect(made.length).toBeLessThan(12);
  expect(made.length).toBeGreaterThan(5);
  for (const answer of told.slice(made.length)) expect(answer).toMatchObject({ status: 429, retryAfter: '1' });
  expect(side.cluster.objects(resources.pods)).toHaveLength(made.length);
});

test('the audit log has a line for each call, without its query', async () => {
  await answers([pod('new'), { method: 'DELETE', path: 'kube/pods/absent?uid=secret' }]);
  const { leaseId } = lease;
  for (const [audit, path, status] of [
    ['POST', 'kube/pods', 201],
    ['DELETE', 'kube/pods/absent', 404],
  ])
    expect(logged.filter((line) => line.audit === audit && line.path === path)).toMatchObject([{ leaseId, status }]);
});

test('an answer that never comes is a no that leaves it open; one that the API server breaks off has no line', async () => {
  side.cluster.failNext({ method: 'POST', resource: 'pods', fail: 'answer-lost' });
  const told = await answers([pod('lost'), pod('made')]);
  expect(told).toMatchObject([{ status: 502 }, { status: 201 }]);
  expect(side.cluster.object(resources.pods, { namespace, name: 'lost' })).toBeDefined();
});
