/** The shipped admission policies on a real API server: whom they help, whom they refuse, and whom they leave alone. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { accessName } from '../../operator/api/access.ts';
import { customResourceDefinition } from '../../operator/api/crd.ts';
import { kinds } from '../../operator/api/kinds.ts';
import { policies } from '../../operator/api/policies.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { type Cluster, resources } from '../../operator/engine/types.ts';
import type { PlaneAccess } from '../../operator/sandbox/clusters/plane.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, planes, quiet, type TestNamespace, testNamespace } from '../support/clusters.ts';

type Json = Record<string, unknown>;
interface Spec extends Json {
  nodeSelector?: Record<string, string>;
  tolerations?: Json[];
  affinity?: Json;
}

const leased = 'gpu-train-0123456789';
const shared = 'gpu-shared-0123456789';
const open = 'gpu-open-0123456789';

let plane: PlaneAccess;
let cluster: Cluster;
let namespace: TestNamespace;
let stranger: TestNamespace;

beforeAll(async () => {
  ({ consumer: plane } = await planes());
  cluster = connectCluster({ name: 'consumer', kubeconfig: plane.kubeconfig });
  [namespace, stranger] = await Promise.all([testNamespace(plane, 'policies'), testNamespace(plane, 'stranger')]);
  await applyManifests(
    cluster,
    [...kinds.map(customResourceDefinition), ...policies.flatMap((policy) => policy.manifests)],
    { fieldManager: 'test' },
  );
  await writeAccess([]);
  // What is applied is used some moments later.
  await eventually(
    async () => (await dryPod({}, { 'gpulease.dev/lease': 'x' })).nodeSelector !== undefined,
    'policies',
  );
  await eventually(
    async () => (await plane.api.request('POST', podPath(stranger.name), podOf({ nodeName: leased }))).status === 403,
    'GpuAccess to be seen',
  );
});

afterAll(async () => {
  for (const policy of policies)
    for (const { kind, metadata } of policy.manifests)
      await plane.api.request(
        'DELETE',
        `/apis/admissionregistration.k8s.io/v1/${kind.toLowerCase().replace(/y$/, 'ie')}s/${metadata.name}`,
      );
  await plane.api.request('DELETE', `/apis/gpulease.dev/v1alpha1/gpuaccesses/${accessName}`);
  await Promise.all([namespace?.remove(), stranger?.remove()]);
});

async function writeAccess(untainted: readonly string[]): Promise<void> {
  await cluster.apply(
    resources.gpuAccesses,
    {
      apiVersion: 'gpulease.dev/v1alpha1',
      kind: 'GpuAccess',
      metadata: { name: accessName },
      spec: {
        nodes: {
          [leased]: { lease: `${namespace.name}/train`, namespaces: [namespace.name] },
          [shared]: { lease: `${namespace.name}/shared`, namespaces: ['*'] },
          [open]: { lease: `${namespace.name}/open`, namespaces: [namespace.name] },
        },
        untainted,
      },
    } as never,
    { fieldManager: 'test' },
  );
}

const podPath = (its: string) => `/api/v1/namespaces/${its}/pods?dryRun=All`;
const containers = [{ name: 'main', image: 'none' }];
const podOf = (spec: Json, labels: Json = {}, metadata: Json = {}) => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { generateName: 'pod-', labels, ...metadata },
  spec: { containers, ...spec },
});

/** The spec as the API server would store it, without what other admission adds. */
async function dryPod(spec: Json, labels: Json = {}, metadata: Json = {}, its = namespace.name): Promise<Spec> {
  const stored = await plane.api.call<{ spec: Spec }>('POST', podPath(its), podOf(spec, labels, metadata));
  const { nodeSelector, tolerations, affinity } = stored.spec;
  return {
    ...(nodeSelector && { nodeSelector }),
    tolerations: tolerations?.filter((t) => !String(t.key).startsWith('node.kubernetes.io/')),
    ...(affinity && { affinity }),
  };
}

const lease = { 'gpulease.dev/lease': 'train' };
const pool = { 'gpulease.dev/pool': 'spare' };
const ofLease = { key: 'gpulease.dev/lease', operator: 'Equal', value: 'train', effect: 'NoSchedule' };
const ofAnyLease = { key: 'gpulease.dev/lease', operator: 'Exists', effect: 'NoSchedule' };
const ofVirtualNodes = {
  key: 'virtual-kubelet.io/provider',
  operator: 'Equal',
  value: 'gpulease',
  effect: 'NoSchedule',
};
const owner = (kind: string) => ({
  ownerReferences: [{ apiVersion: 'apps/v1', kind, name: 'x', uid: 'x', controller: true }],
  labels: { 'controller-revision-hash': 'x' },
});

it.each(
  policies.map(({ name, manifests }) => [name, manifests[0]!] as const),
)('%s is understood: no warning of the type checker', async (name, { kind }) => {
  if (kind !== 'ValidatingAdmissionPolicy') return; // mutating ones have no status
  const path = `/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/${name}`;
  await eventually(async () => {
    const { status } = await plane.api.call<{ status?: { typeChecking?: Json; observedGeneration?: number } }>(
      'GET',
      path,
    );
    if (status?.observedGeneration === undefined) return false;
    expect(status.typeChecking?.expressionWarnings ?? []).toEqual([]);
    return true;
  }, 'the type check');
});

describe('a pod that names its lease', () => {
  it('needs nothing else', async () => {
    expect(await dryPod({}, lease)).toEqual({
      nodeSelector: { 'gpulease.dev/lease': 'train', 'gpulease.dev/lease-namespace': namespace.name },
      tolerations: [ofLease, ofVirtualNodes],
    });
  });

  it('may name one of another namespace', async () => {
    const { nodeSelector } = await dryPod({}, { ...lease, 'gpulease.dev/lease-namespace': 'ml' });
    expect(nodeSelector).toEqual({ 'gpulease.dev/lease': 'train', 'gpulease.dev/lease-namespace': 'ml' });
  });

  it('may name a pool instead, whose leases have names of their own', async () => {
    expect(await dryPod({}, pool)).toEqual({
      nodeSelector: { 'gpulease.dev/pool': 'spare', 'gpulease.dev/lease-namespace': namespace.name },
      tolerations: [ofAnyLease, ofVirtualNodes],
    });
  });

  it('may name both', async () => {
    expect(await dryPod({}, { ...lease, ...pool })).toEqual({
      nodeSelector: {
        'gpulease.dev/lease': 'train',
        'gpulease.dev/pool': 'spare',
        'gpulease.dev/lease-namespace': namespace.name,
      },
      tolerations: [ofLease, ofVirtualNodes],
    });
  });

  it.each<[string, Spec, Spec]>([
    [
      'a selector of its own',
      { nodeSelector: { zone: 'a', 'gpulease.dev/lease': 'other', 'gpulease.dev/lease-namespace': 'else' } },
      { nodeSelector: { zone: 'a', 'gpulease.dev/lease': 'other', 'gpulease.dev/lease-namespace': 'else' } },
    ],
    [
      'a toleration of everything',
      { tolerations: [{ operator: 'Exists' }] },
      { tolerations: [{ operator: 'Exists' }] },
    ],
    [
      'tolerations of any lease',
      {
        tolerations: [
          { key: 'gpulease.dev/lease', operator: 'Exists' },
          { key: 'virtual-kubelet.io/provider', operator: 'Exists' },
        ],
      },
      {
        tolerations: [
          { key: 'gpulease.dev/lease', operator: 'Exists' },
          { key: 'virtual-kubelet.io/provider', operator: 'Exists' },
        ],
      },
    ],
    [
      'a toleration of another lease, which does not help it',
      { tolerations: [{ key: 'gpulease.dev/lease', operator: 'Equal', value: 'other', effect: 'NoSchedule' }] },
      {
        tolerations: [
          { key: 'gpulease.dev/lease', operator: 'Equal', value: 'other', effect: 'NoSchedule' },
          ofLease,
          ofVirtualNodes,
        ],
      },
    ],
    [
      'a toleration of another effect',
      { tolerations: [{ key: 'gpulease.dev/lease', operator: 'Exists', effect: 'NoExecute' }] },
      {
        tolerations: [{ key: 'gpulease.dev/lease', operator: 'Exists', effect: 'NoExecute' }, ofLease, ofVirtualNodes],
      },
    ],
  ])('keeps %s', async (_, written, kept) => {
    expect(await dryPod(written, lease)).toMatchObject(kept);
    expect((await dryPod(written, lease)).tolerations).toHaveLength(kept.tolerations?.length ?? 2);
  });

  it('is the same when it is admitted again', async () => {
    const once = await dryPod({}, lease);
    expect(await dryPod(once, lease)).toEqual(once);
  });

  const written = (name: string, spec: Json, labels: Json = lease) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: namespace.name, labels },
    spec: { schedulerName: 'nobody', containers, ...spec },
  });
  const own = {
    nodeSelector: { zone: 'a' },
    tolerations: [{ key: 'nvidia.com/gpu', operator: 'Exists', effect: 'NoSchedule' }],
  };
  interface Stored {
    metadata: { generation: number };
    spec: Spec;
  }

  it('may be applied again as it was written: by the server', async () => {
    const apply = () =>
      cluster.apply(resources.pods, written('again', own) as never, { fieldManager: 'somebody' }) as Promise<unknown>;
    const first = (await apply()) as Stored;
    expect(first.spec.nodeSelector).toMatchObject({ zone: 'a', 'gpulease.dev/lease': 'train' });
    const second = (await apply()) as Stored;
    expect(second.spec).toEqual(first.spec);
    expect(second.metadata.generation).toBe(first.metadata.generation);
  });

  it('and by kubectl', async () => {
    const { kubectl } = await ensureTools({ need: ['plane'], report: quiet });
    const apply = async () => {
      const run = promisify(execFile)(kubectl, [`--kubeconfig=${plane.kubeconfigPath}`, 'apply', '-f', '-']);
      run.child.stdin!.end(JSON.stringify(written('again-by-kubectl', own)));
      return (await run).stdout;
    };
    expect(await apply()).toContain('created');
    expect(await apply()).toMatch(/unchanged|configured/);
  });

  it('may lose its label, or get one, and is not changed by it', async () => {
    const path = `/api/v1/namespaces/${namespace.name}/pods`;
    const spec = { tolerations: [{ operator: 'Exists', key: 'x' }] };
    await plane.api.call('POST', path, written('unnamed', spec, {}));
    const named = await plane.api.call<Stored>('PATCH', `${path}/unnamed`, { metadata: { labels: lease } });
    expect(named.spec.nodeSelector).toBeUndefined();
    await plane.api.call('POST', path, written('named', spec));
    const other = { 'gpulease.dev/lease': 'other' };
    const renamed = await plane.api.call<Stored>('PATCH', `${path}/named`, { metadata: { labels: other } });
    expect(renamed.spec.nodeSelector).toMatchObject(lease);
  });

  it.each<[string, Json, Json, Json]>([
    ['without a label', {}, {}, {}],
    ['with an empty one', {}, { 'gpulease.dev/lease': '' }, {}],
    ['that has its node', { nodeName: 'n1' }, lease, {}],
    ['of a DaemonSet', {}, {}, { ...owner('DaemonSet'), labels: lease }],
  ])('leaves a pod %s alone', async (_, spec, labels, metadata) => {
    expect(await dryPod(spec, labels, metadata)).toEqual({ tolerations: [] });
  });
});

describe('a namespace that may not use a lease', () => {
  const bind = async (its: string, node: string) => {
    const made = await plane.api.call<{ metadata: { name: string } }>(
      'POST',
      `/api/v1/namespaces/${its}/pods`,
      podOf({ schedulerName: 'nobody' }),
    );
    const { name } = made.metadata;
    return plane.api.request('POST', `/api/v1/namespaces/${its}/pods/${name}/binding`, {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: { name },
      target: { apiVersion: 'v1', kind: 'Node', name: node },
    });
  };

  it('is refused at the binding, with the reason and the way out', async () => {
    const answer = await bind(stranger.name, leased);
    expect(answer.status).toBe(403);
    expect(answer.json().message).toContain(
      `pods of namespace ${stranger.name} may not use lease ${namespace.name}/train: add the namespace to spec.access.namespaces of the GpuLease, or run the pod elsewhere`,
    );
  });

  it.each([
    ['of the lease', () => namespace.name, leased],
    ['that every namespace may use', () => stranger.name, shared],
    ['that is none of ours, whatever it is called', () => stranger.name, 'gpu-h100-1'],
    ['that is called otherwise', () => stranger.name, 'worker-1'],
  ])('does not matter on a node %s', async (_, its, node) => {
    expect((await bind(its(), node)).status).toBe(201);
  });

  it('is refused a pod that is assigned already', async () => {
    const refused = await plane.api.request('POST', podPath(stranger.name), podOf({ nodeName: leased }));
    expect(refused.status).toBe(403);
    expect(refused.text).toContain('may not use lease');
    for (const [its, node] of [
      [namespace.name, leased],
      [stranger.name, shared],
      [stranger.name, 'gpu-h100-1'],
    ] as const)
      expect((await plane.api.request('POST', podPath(its), podOf({ nodeName: node }))).status).toBe(201);
  });
});

const away = (key: string, operator: string, values?: string[]) => ({ key, operator, ...(values && { values }) });
const required = (...terms: Json[]) => ({
  nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: terms } },
});
const preferred = {
  preferredDuringSchedulingIgnoredDuringExecution: [
    { weight: 1, preference: { matchExpressions: [away('a', 'Exists')] } },
  ],
};
const fields = { matchFields: [away('metadata.name', 'In', ['n1'])] };
/** Every way in which a pod may have an affinity, and what becomes of it when nodes must be `x`, or either of two. */
const affinities = (...x: Json[]): [string, Json | undefined, Json][] => [
  ['none', undefined, required(...x.map((one) => ({ matchExpressions: [one] })))],
  [
    'one to pods only',
    { podAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [] } },
    required(...x.map((one) => ({ matchExpressions: [one] }))),
  ],
  [
    'a preferred one',
    { nodeAffinity: preferred },
    { nodeAffinity: { ...preferred, ...required(...x.map((one) => ({ matchExpressions: [one] }))).nodeAffinity } },
  ],
  [
    'alternatives',
    required({ matchExpressions: [away('a', 'Exists')] }, fields),
    required(
      ...x.flatMap((one) => [{ matchExpressions: [away('a', 'Exists'), one] }, { matchExpressions: [one], ...fields }]),
    ),
  ],
  [
    'the same already',
    required(...x.map((one) => ({ matchExpressions: [one] }))),
    required(...x.map((one) => ({ matchExpressions: [one] }))),
  ],
];
const notLeased = away('gpulease.dev/lease', 'DoesNotExist');
const notRestricted = away('gpulease.dev/access', 'NotIn', ['restricted']);
/** The namespaces have their names only when the tests run. */
const openTo = (its: string) => away(`access.gpulease.dev/${its}`, 'Exists');
const here = 'HERE';
const placed = (affinity: Json) => JSON.parse(JSON.stringify(affinity).replaceAll(here, namespace.name)) as Json;

describe('a pod that tolerates everything, and asks for no lease', () => {
  const tolerations = [{ operator: 'Exists' }];

  it.each(
    affinities(notRestricted, openTo(here)),
  )('gets to leased nodes that its namespace may use, and no others; with affinity %s', async (_, affinity, expected) => {
    const spec = { tolerations, ...(affinity ? { affinity: placed(affinity) } : {}) };
    expect((await dryPod(spec)).affinity).toMatchObject(placed(expected));
  });

  it.each<[string, Json, Json, Json]>([
    ['when it names its lease', {}, lease, {}],
    ['when it selects the nodes of one itself', { nodeSelector: lease }, {}, {}],
    ['when it has its node', { nodeName: 'n1' }, {}, {}],
    ['of a DaemonSet', {}, {}, owner('DaemonSet')],
  ])('is left alone %s', async (_, spec, labels, metadata) => {
    expect((await dryPod({ tolerations, ...spec }, labels, metadata)).affinity).toBeUndefined();
  });

  it.each<[string, Json[]]>([
    ['nothing', []],
    ['other taints', [{ key: 'nvidia.com/gpu', operator: 'Exists' }]],
    ['one of our two', [{ key: 'gpulease.dev/lease', operator: 'Exists' }]],
    ['another effect', [{ operator: 'Exists', effect: 'NoExecute' }]],
  ])('but one that tolerates %s is left alone: taints keep it away', async (_, others) => {
    expect((await dryPod({ tolerations: others })).affinity).toBeUndefined();
  });
});

describe('a pod that must be spread evenly', () => {
  const spread = (whenUnsatisfiable: string) => ({
    topologySpreadConstraints: [
      {
        maxSkew: 1,
        topologyKey: 'kubernetes.io/hostname',
        whenUnsatisfiable,
        labelSelector: { matchLabels: { a: 'b' } },
      },
    ],
  });

  it.each(affinities(notLeased))('does not count leased nodes; with affinity %s', async (_, affinity, expected) => {
    const spec = { ...spread('DoNotSchedule'), ...(affinity ? { affinity } : {}) };
    expect((await dryPod(spec)).affinity).toMatchObject(expected);
  });

  it('is left alone when it asks for a lease, or may be spread unevenly', async () => {
    expect((await dryPod(spread('DoNotSchedule'), lease)).affinity).toBeUndefined();
    expect((await dryPod(spread('ScheduleAnyway'))).affinity).toBeUndefined();
  });
});

describe('while a leased node is open to all pods', () => {
  beforeAll(async () => {
    await writeAccess([open]);
    await eventually(async () => (await dryPod({}, {}, {}, stranger.name)).affinity !== undefined, 'the open node');
  });
  afterAll(() => writeAccess([]));

  it('pods of namespaces that may not use it look elsewhere', async () => {
    expect((await dryPod({}, {}, {}, stranger.name)).affinity).toEqual(
      required({ matchExpressions: [notRestricted] }, { matchExpressions: [openTo(stranger.name)] }),
    );
  });

  it('others are left alone', async () => {
    expect((await dryPod({})).affinity).toBeUndefined();
    expect((await dryPod({ nodeName: 'n1' }, {}, {}, stranger.name)).affinity).toBeUndefined();
    expect((await dryPod({}, {}, owner('DaemonSet'), stranger.name)).affinity).toBeUndefined();
  });
});

describe('a DaemonSet', () => {
  const path = () => `/apis/apps/v1/namespaces/${namespace.name}/daemonsets`;
  const daemonSet = (name: string, spec: Json, image = 'none') => ({
    apiVersion: 'apps/v1',
    kind: 'DaemonSet',
    metadata: { name },
    spec: {
      selector: { matchLabels: { app: name } },
      template: {
        metadata: { labels: { app: name } },
        spec: { containers: [{ name: 'main', image }], tolerations: [{ operator: 'Exists' }], ...spec },
      },
    },
  });
  type Stored = { metadata: Json; spec: { template: { spec: Spec } } };

  it.each(affinities(notLeased))('is not made for leased nodes; with affinity %s', async (_, affinity, expected) => {
    const stored = await plane.api.call<Stored>(
      'POST',
      `${path()}?dryRun=All`,
      daemonSet('ds', affinity ? { affinity } : {}),
    );
    expect(stored.spec.template.spec.affinity).toMatchObject(expected);
  });

  it('that was there before is changed by its next rollout, and by nothing else', async () => {
    const stored = await plane.api.call<Stored>('POST', path(), daemonSet('older', {}));
    const at = `${path()}/older`;
    // As it would be without the policy: a template that has the affinity taken away is given it again.
    const without = [{ op: 'remove', path: '/spec/template/spec/affinity' }];
    const same = await plane.api.call<Stored>('PATCH', at, without);
    expect(same.spec).toEqual(stored.spec);
    expect(same.metadata.generation).toBe(stored.metadata.generation);
    const labelled = await plane.api.call<Stored>('PATCH', at, { metadata: { labels: { some: 'label' } } });
    expect(labelled.metadata.generation).toBe(stored.metadata.generation);
  });

  it.each([
    ['DaemonSet', 'gpu-train-0123456789', true],
    ['DaemonSet', 'worker-1', false],
    ['StatefulSet', 'gpu-train-0123456789', false],
  ])('pods of a %s for node %s are kept unbound: %s', async (kind, node, kept) => {
    const forNode = { matchFields: [away('metadata.name', 'In', [node])] };
    const { affinity } = await dryPod({ affinity: required(forNode) }, {}, owner(kind));
    expect(affinity).toEqual(required(kept ? { matchExpressions: [notLeased], ...forNode } : forNode));
  });
});
