/** For which nodes and which addresses the approver approves, and whom it lets in where. */
import { afterEach, expect, test } from 'vitest';
import { servingCertificates } from '../../../operator/adapters/kube/serving-certificate.ts';
import { labels, managedBy } from '../../../operator/api/labels.ts';
import { approverPart } from '../../../operator/cmd/approver-part.ts';
import { systemClock } from '../../../operator/engine/clock.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { lease } from '../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

interface Csr extends KubeObject {
  spec: { username?: string };
  status?: { conditions?: { type: string }[] };
}
const operator = 'system:serviceaccount:gpulease-system:gpulease-operator';
let stop = new AbortController();
let running: Promise<void> | undefined;
afterEach(async () => {
  stop.abort(new Error('done'));
  await running;
  stop = new AbortController();
});

async function asked(name: string, node: string, address: string): Promise<Csr> {
  const cluster = fakeCluster();
  let csr: Csr | undefined;
  cluster.intercept((request) => {
    if (request.method === 'POST') csr = request.body as Csr;
    return undefined;
  });
  const certificates = servingCertificates({ cluster, now: () => new Date(), waitSeconds: 0, log: silentLog });
  await certificates.signed(node, address);
  return { ...csr!, metadata: { name }, spec: { ...csr!.spec, username: operator } };
}

function takesApprovals(cluster: FakeCluster): void {
  cluster.intercept((request) => {
    if (request.subresource !== 'approval') return undefined;
    const { status } = request.body as Csr;
    const changed = cluster.change<Csr>(resources.csrs, { name: request.name! }, (csr) => {
      csr.status = { ...csr.status, conditions: status?.conditions };
    });
    return { code: 200, body: changed };
  });
}

const pod = (name: string, ip: string, spec: object = {}, component = 'operator', phase = 'Running') =>
  ({
    metadata: { namespace: 'gpulease-system', name, labels: { component } },
    spec,
    status: { phase, podIPs: [{ ip }] },
  }) as KubeObject;
const node = (name: string, ip: string, its: Record<string, string> = {}) =>
  ({ metadata: { name, labels: its }, status: { addresses: [{ type: 'InternalIP', address: ip }] } }) as KubeObject;

test('approves for nodes that are ours, at addresses of pods of the operator', async () => {
  const cluster = fakeCluster();
  takesApprovals(cluster);
  cluster.seed(
    resources.pods,
    pod('one', '10.1.0.5'),
    pod('on-host', '192.168.0.9', { hostNetwork: true }),
    pod('forged', '192.168.0.8'),
    pod('ended', '10.1.0.7', {}, 'operator', 'Failed'),
    pod('other', '10.1.0.6', {}, 'web'),
  );
  cluster.seed(
    resources.nodes,
    node('worker', '192.168.0.9'),
    node('worker-2', '192.168.0.8'),
    node('gpu-of-others', '192.168.0.7'),
    node('gpu-ours', '10.1.0.5', { [labels.managedBy]: managedBy }),
  );
  const requests: [string, string, string, string | undefined][] = [
    ['ours', 'gpu-ours', '10.1.0.5', 'Approved'],
    ['new', 'gpu-to-come', '10.1.0.5', 'Approved'],
    ['on-host', 'gpu-ours', '192.168.0.9', 'Approved'],
    ['forged', 'gpu-ours', '192.168.0.8', 'Denied'],
    ['ended', 'gpu-ours', '10.1.0.7', 'Denied'],
    ['other-pod', 'gpu-ours', '10.1.0.6', 'Denied'],
    ['of-others', 'gpu-of-others', '10.1.0.5', undefined],
    ['worker', 'worker', '10.1.0.5', undefined],
  ];
  for (const [name, its, address] of requests) cluster.seed<Csr>(resources.csrs, await asked(name, its, address));
  running = approverPart({
    cluster,
    operator,
    addresses: { namespace: 'gpulease-system', labels: { component: 'operator' } },
    closed: [],
    clock: systemClock,
    log: silentLog,
  }).run(stop.signal);
  const verdicts = () =>
    Object.fromEntries(
      requests.map(([name]) => [
        name,
        cluster.object<Csr>(resources.csrs, { name })?.status?.conditions?.map(({ type }) => type)[0],
      ]),
    );
  await expect
    .poll(verdicts, { timeout: 5000 })
    .toEqual(Object.fromEntries(requests.map(([name, , , verdict]) => [name, verdict])));
});

test('lets the operator in while a lease is there, and touches no binding of others', async () => {
  const cluster = fakeCluster();
  const namespace = (name: string) => ({ metadata: { name } }) as KubeObject;
  cluster.seed(resources.namespaces, namespace('ml'), namespace('web'), namespace('kube-system'));
  const stranger = {
    metadata: { namespace: 'web', name: 'theirs', labels: { [labels.managedBy]: managedBy } },
    roleRef: { name: 'view' },
  } as KubeObject;
  cluster.seed(resources.roleBindings, stranger);
  cluster.seed(
    resources.gpuLeases,
    lease({}, { metadata: { namespace: 'ml', name: 'train', finalizers: [] } }) as KubeObject,
  );
  running = approverPart({
    cluster,
    operator,
    addresses: ['10.0.0.1'],
    closed: [],
    clock: systemClock,
    log: silentLog,
  }).run(stop.signal);
  const bound = () =>
    cluster.objects<KubeObject>(resources.roleBindings).map(({ metadata }) => `${metadata.namespace}/${metadata.name}`);
  await expect.poll(bound, { timeout: 5000 }).toEqual(['web/theirs', 'ml/gpulease-operator-in-namespace']);
  const made = cluster.object<KubeObject & { subjects?: object[] }>(resources.roleBindings, {
    namespace: 'ml',
    name: 'gpulease-operator-in-namespace',
  });
  expect(made?.subjects).toEqual([{ kind: 'ServiceAccount', namespace: 'gpulease-system', name: 'gpulease-operator' }]);
  await cluster.delete(resources.gpuLeases, { namespace: 'ml', name: 'train' });
  await expect.poll(bound, { timeout: 5000 }).toEqual(['web/theirs']);
});
