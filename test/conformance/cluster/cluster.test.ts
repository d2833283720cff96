/**
 * What the project relies on an API server for, said once and asked of both: the fake that unit tests and simulations run
 * on, and a real kube-apiserver. Where they differ, the fake is wrong.
 */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { StoreConflict } from '../../../operator/adapters/chain/store.ts';
import { applyManifests } from '../../../operator/adapters/kube/apply-manifests.ts';
import { createSecretStore } from '../../../operator/adapters/kube/secret-store.ts';
import { sleep, systemClock } from '../../../operator/engine/clock.ts';
import { connectCluster } from '../../../operator/engine/cluster.ts';
import { createController, watches } from '../../../operator/engine/controller.ts';
import { isConflict } from '../../../operator/engine/errors.ts';
import { createEventRecorder } from '../../../operator/engine/events.ts';
import { readBody } from '../../../operator/engine/http.ts';
import { createInformer } from '../../../operator/engine/informer.ts';
import { runAsLeader } from '../../../operator/engine/leader.ts';
import { keyOf } from '../../../operator/engine/paths.ts';
import { addFinalizer, applyStatus, removeFinalizer } from '../../../operator/engine/status.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../../../operator/engine/types.ts';
import { watchOnce } from '../../../operator/engine/watch.ts';
import { planes, testNamespace } from '../../support/clusters.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

const widgets: Resource = {
  group: 'conformance.gpulease.dev',
  version: 'v1',
  plural: 'widgets',
  kind: 'Widget',
  namespaced: true,
};

interface Widget extends KubeObject {
  spec?: { size?: number; colour?: string; parts?: Record<string, string> };
  status?: { conditions?: { type: string; status: string; message?: string }[]; seen?: number };
}
interface Pod extends KubeObject {
  spec?: { nodeName?: string; containers: { name: string; image: string }[]; terminationGracePeriodSeconds?: number };
  status?: { phase?: string };
}
interface Secret extends KubeObject {
  data?: Record<string, string>;
}

const widgetDefinition = {
  apiVersion: 'apiextensions.k8s.io/v1',
  kind: 'CustomResourceDefinition',
  metadata: { name: `${widgets.plural}.${widgets.group}` },
  spec: {
    group: widgets.group,
    scope: 'Namespaced',
    names: { plural: widgets.plural, singular: 'widget', kind: widgets.kind },
    versions: [
      {
        name: widgets.version,
        served: true,
        storage: true,
        subresources: { status: {} },
        schema: {
          openAPIV3Schema: {
            type: 'object',
            properties: {
              spec: {
                type: 'object',
                properties: {
                  size: { type: 'integer' },
                  colour: { type: 'string' },
                  parts: { type: 'object', additionalProperties: { type: 'string' } },
                },
              },
              status: {
                type: 'object',
                properties: {
                  seen: { type: 'integer' },
                  conditions: {
                    type: 'array',
                    'x-kubernetes-list-type': 'map',
                    'x-kubernetes-list-map-keys': ['type'],
                    items: {
                      type: 'object',
                      required: ['type', 'status'],
                      properties: {
                        type: { type: 'string' },
                        status: { type: 'string' },
                        message: { type: 'string' },
                      },
                    },
                  },
                },
              },
            },
          },
        },
      },
    ],
  },
};

interface World {
  readonly cluster: Cluster;
  makeNamespace(): Promise<string>;
  end(): Promise<void>;
}

async function fakeWorld(): Promise<World> {
  const cluster = fakeCluster({ name: 'fake', resources: [widgets] });
  return {
    cluster,
    async makeNamespace() {
      const name = `c-${randomBytes(4).toString('hex')}`;
      await cluster.create(resources.namespaces, { metadata: { name } });
      return name;
    },
    end: async () => undefined,
  };
}

async function realWorld(): Promise<World> {
  const { consumer } = await planes();
  const cluster = connectCluster({ name: 'real', kubeconfig: consumer.kubeconfigPath });
  await applyManifests(cluster, [widgetDefinition], { fieldManager: 'conformance' });
  const made: { name: string }[] = [];
  return {
    cluster,
    async makeNamespace() {
      const namespace = await testNamespace(consumer, 'c');
      made.push(namespace);
      return namespace.name;
    },
    end: async () => {
      for (const { name } of made) await cluster.delete(resources.namespaces, { name });
    },
  };
}

/** What of an error callers act on. */
const refusal = (promise: Promise<unknown>) =>
  promise.then(
    () => 'was accepted',
    (error: { name: string; code?: number; reason?: string }) => `${error.name} ${error.code} ${error.reason}`,
  );

async function eventually<T>(read: () => Promise<T> | T, wanted: (value: T) => boolean, what: string): Promise<T> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const value = await read();
    if (wanted(value)) return value;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}; last: ${JSON.stringify(value)}`);
    await sleep(systemClock, 20);
  }
}

describe.each([
  ['the fake cluster', fakeWorld],
  ['a real API server', realWorld],
] as const)('%s', (_, open) => {
  let world: World;
  let cluster: Cluster;
  let namespace: string;
  beforeAll(async () => {
    world = await open();
    cluster = world.cluster;
    namespace = await world.makeNamespace();
  });
  afterAll(() => world?.end());

  let count = 0;
  const at = (name = `n${++count}`) => ({ namespace, name });
  const widget = (spec: Widget['spec'] = { size: 1 }, name?: string): Widget => ({ metadata: at(name), spec });
  const pod = (nodeName?: string): Pod => ({
    metadata: at(),
    spec: { nodeName, containers: [{ name: 'main', image: 'example.invalid/none' }] },
  });
  const read = <T extends KubeObject>(resource: Resource, object: KubeObject) =>
    cluster.get<T>(resource, keyOf(object));

  // ---- reading, making

  it('says undefined for what is not there', async () => {
    expect(await cluster.get(widgets, at('never-made'))).toBeUndefined();
  });

  it('gives a new object its identity, and no status that its author wrote', async () => {
    const made = await cluster.create<Widget>(widgets, { ...widget(), status: { seen: 1 } });
    expect(made).toMatchObject({ apiVersion: 'conformance.gpulease.dev/v1', kind: 'Widget', spec: { size: 1 } });
    expect(made.metadata).toMatchObject({ namespace, generation: 1 });
    expect(made.metadata.uid).toMatch(/^[0-9a-f-]{36}$/);
    expect(made.metadata.creationTimestamp).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    expect(made.status).toBeUndefined();
    expect(await read(widgets, made)).toEqual(made);
  });

  it('makes up a name where a prefix is given', async () => {
    const made = await cluster.create(resources.secrets, {
      metadata: { namespace, generateName: 'made-' } as unknown as KubeObject['metadata'],
    });
    expect(made.metadata.name).toMatch(/^made-[a-z0-9]{5}$/);
  });

  it('refuses a second object of one name, a name that is none, and a version that cannot be', async () => {
    const made = await cluster.create(widgets, widget());
    expect(await refusal(cluster.create(widgets, widget({}, made.metadata.name)))).toBe('ApiError 409 AlreadyExists');
    expect(await refusal(cluster.create(widgets, widget({}, 'Not_a_Name')))).toBe('ApiError 422 Invalid');
    const versioned = { ...widget(), metadata: { ...at(), resourceVersion: '1' } };
    // Said with a 500, which does not tell that nothing was stored.
    expect(await refusal(cluster.create(widgets, versioned))).toBe('UnknownOutcomeError 500 undefined');
    expect(await cluster.get(widgets, keyOf(versioned))).toBeUndefined();
  });

  it('lists in pages, by labels and by fields, with everything filled in', async () => {
    const where = await world.makeNamespace();
    for (let n = 0; n < 7; n++) {
      const labels = { parity: n % 2 ? 'odd' : 'even', n: String(n) };
      await cluster.create(resources.secrets, { metadata: { namespace: where, name: `s${n}`, labels } });
    }
    const names = async (options: object) =>
      (await cluster.list(resources.secrets, { namespace: where, ...options })).items.map((s) => s.metadata.name);
    expect(await names({ limit: 2 })).toEqual(['s0', 's1', 's2', 's3', 's4', 's5', 's6']);
    expect(await names({ labelSelector: 'parity=odd' })).toEqual(['s1', 's3', 's5']);
    expect(await names({ labelSelector: 'parity!=odd,n in (2, 4)' })).toEqual(['s2', 's4']);
    expect(await names({ labelSelector: 'n notin (0,1,2,3,4,5),parity' })).toEqual(['s6']);
    expect(await names({ labelSelector: '!parity' })).toEqual([]);
    expect(await names({ fieldSelector: 'metadata.name=s3' })).toEqual(['s3']);
    const { items, resourceVersion } = await cluster.list(resources.secrets, { namespace: where, limit: 3 });
    expect(items.every((s) => s.kind === 'Secret' && s.apiVersion === 'v1')).toBe(true);
    expect(resourceVersion).toMatch(/^\d+$/);
    const everywhere = await cluster.list(resources.secrets, { labelSelector: 'n=3' });
    expect(everywhere.items.map((s) => s.metadata.namespace)).toContain(where);
  });

  // ---- changing

  it('replaces an object only if it is the one that was read', async () => {
    const first = await cluster.create<Widget>(widgets, widget());
    const second = await cluster.replace<Widget>(widgets, { ...first, spec: { size: 2 } });
    expect(second.spec).toEqual({ size: 2 });
    expect(await refusal(cluster.replace(widgets, { ...first, spec: { size: 3 } }))).toBe('ApiError 409 Conflict');
    const { resourceVersion: _, ...unversioned } = second.metadata;
    expect(await refusal(cluster.replace(widgets, { ...second, metadata: unversioned }))).toBe('ApiError 422 Invalid');
    expect(await refusal(cluster.replace(widgets, { ...second, metadata: { ...second.metadata, name: 'gone' } }))).toBe(
      'ApiError 404 NotFound',
    );
  });

  it('lets core objects be replaced without naming a version', async () => {
    const secret: Secret = { metadata: at(), data: { a: 'MQ==' } };
    await cluster.create(resources.secrets, secret);
    const replaced = await cluster.replace<Secret>(resources.secrets, { ...secret, data: { b: 'Mg==' } });
    expect(replaced.data).toEqual({ b: 'Mg==' });
  });

  it('stores nothing when nothing changes', async () => {
    const made = await cluster.create<Widget>(widgets, widget({ size: 1, parts: { a: 'x' } }));
    const again = [
      await cluster.replace<Widget>(widgets, made),
      await cluster.patch<Widget>(widgets, keyOf(made), { spec: { size: 1 } }),
      await cluster.patch<Widget>(widgets, keyOf(made), [{ op: 'replace', path: '/spec/size', value: 1 }], {
        type: 'json',
      }),
    ];
    for (const object of again) expect(object.metadata.resourceVersion).toBe(made.metadata.resourceVersion);
  });

  it('counts generations of the wish, not of labels or status', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const generation = async () => (await read(widgets, made))?.metadata.generation;
    await cluster.patch(widgets, keyOf(made), { metadata: { labels: { a: 'b' } } });
    await cluster.patch(widgets, keyOf(made), { status: { seen: 2 } }, { subresource: 'status' });
    expect(await generation()).toBe(1);
    await cluster.patch(widgets, keyOf(made), { spec: { size: 2 } });
    expect(await generation()).toBe(2);
  });

  it('keeps status and the rest apart', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const reported = await cluster.replace<Widget>(
      widgets,
      { ...made, spec: { size: 99 }, status: { seen: 1 } },
      { subresource: 'status' },
    );
    expect([reported.spec, reported.status]).toEqual([{ size: 1 }, { seen: 1 }]);
    const changed = await cluster.replace<Widget>(widgets, { ...reported, spec: { size: 2 }, status: { seen: 99 } });
    expect([changed.spec, changed.status]).toEqual([{ size: 2 }, { seen: 1 }]);
  });

  it('merges a patch, with null for gone, and its version and uid as preconditions', async () => {
    const made = await cluster.create<Widget>(widgets, widget({ size: 1, colour: 'red', parts: { a: 'x', b: 'y' } }));
    const patched = await cluster.patch<Widget>(widgets, keyOf(made), {
      spec: { colour: null, parts: { a: null, c: 'z' } },
    });
    expect(patched.spec).toEqual({ size: 1, parts: { b: 'y', c: 'z' } });
    const when = (metadata: object) => refusal(cluster.patch(widgets, keyOf(made), { metadata, spec: { size: 5 } }));
    expect(await when({ resourceVersion: made.metadata.resourceVersion })).toBe('ApiError 409 Conflict');
    expect(await when({ uid: '00000000-0000-4000-8000-0000deadbeef' })).toMatch(
      /^ApiError (409 Conflict|422 Invalid)$/,
    );
    expect(await when({ resourceVersion: patched.metadata.resourceVersion, uid: made.metadata.uid })).toBe(
      'was accepted',
    );
    expect(await refusal(cluster.patch(widgets, at('never-made'), {}))).toBe('ApiError 404 NotFound');
  });

  it('carries out a JSON patch wholly or not at all', async () => {
    const made = await cluster.create<Widget>(widgets, widget({ size: 1, parts: { 'a/b': 'x' } }));
    const patch = (steps: object[]) => cluster.patch<Widget>(widgets, keyOf(made), steps, { type: 'json' });
    const failing = [
      { op: 'replace', path: '/spec/size', value: 7 },
      { op: 'test', path: '/spec/size', value: 1 },
    ];
    expect(await refusal(patch(failing))).toBe('ApiError 422 Invalid');
    expect(await refusal(patch([{ op: 'remove', path: '/spec/colour' }]))).toBe('ApiError 422 Invalid');
    const patched = await patch([
      { op: 'test', path: '/metadata/uid', value: made.metadata.uid },
      { op: 'replace', path: '/spec/parts/a~1b', value: 'y' },
      { op: 'add', path: '/spec/colour', value: 'red' },
    ]);
    expect(patched.spec).toEqual({ size: 1, colour: 'red', parts: { 'a/b': 'y' } });
  });

  it('merges lists by name in a strategic patch, which custom kinds do not know', async () => {
    const made = await cluster.create<Pod>(resources.pods, pod());
    const containers = [{ name: 'main', image: 'example.invalid/other' }];
    const patched = await cluster.patch<Pod>(
      resources.pods,
      keyOf(made),
      { spec: { containers } },
      { type: 'strategic' },
    );
    expect(patched.spec?.containers).toMatchObject(containers);
    expect(patched.spec?.containers).toHaveLength(1);
    const other = await cluster.create(widgets, widget());
    expect(await refusal(cluster.patch(widgets, keyOf(other), { spec: {} }, { type: 'strategic' }))).toBe(
      'ApiError 415 UnsupportedMediaType',
    );
  });

  // ---- apply

  it('applies what is not there, and what is there already in silence', async () => {
    const wanted = widget({ size: 1, parts: { a: 'x' } });
    const apply = () => cluster.apply<Widget>(widgets, wanted, { fieldManager: 'one' });
    const made = await apply();
    expect(made.spec).toEqual(wanted.spec);
    await sleep(systemClock, 1100); // managers are noted by the second: the same again must not even change that
    expect((await apply()).metadata.resourceVersion).toBe(made.metadata.resourceVersion);
  });

  it('keeps the fields of several managers apart, and takes back what one says no more', async () => {
    const { metadata } = widget();
    const apply = (fieldManager: string, spec: Widget['spec'], labels?: Record<string, string>) =>
      cluster.apply<Widget>(widgets, { metadata: { ...metadata, labels }, spec }, { fieldManager });
    await apply('one', { size: 1, parts: { a: 'one' } }, { of: 'one' });
    await apply('two', { colour: 'red', parts: { b: 'two' } });
    expect((await read<Widget>(widgets, { metadata }))?.spec).toEqual({
      size: 1,
      colour: 'red',
      parts: { a: 'one', b: 'two' },
    });
    const after = await apply('one', { parts: { c: 'one' } });
    expect(after.spec).toEqual({ colour: 'red', parts: { b: 'two', c: 'one' } });
    expect(after.metadata.labels).toBeUndefined();
    // Forced: what another says differently changes hands.
    await apply('one', { colour: 'blue' });
    expect((await apply('two', {})).spec).toEqual({ colour: 'blue' });
  });

  it('applies conditions by their type', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const apply = (fieldManager: string, status: Widget['status']) =>
      applyStatus({ cluster, resource: widgets, object: made, fieldManager }, status!);
    await apply('one', {
      conditions: [
        { type: 'A', status: 'True' },
        { type: 'B', status: 'False', message: 'why' },
      ],
    });
    await apply('two', { conditions: [{ type: 'C', status: 'True' }], seen: 3 });
    const last = await apply('one', { conditions: [{ type: 'B', status: 'True' }] });
    expect(last?.status).toEqual({
      conditions: [
        { type: 'B', status: 'True' },
        { type: 'C', status: 'True' },
      ],
      seen: 3,
    });
    expect(last?.spec).toEqual({ size: 1 });
    expect(last?.metadata.generation).toBe(1);
  });

  it('refuses a status for what is gone, or for another of that name', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const report = () =>
      refusal(applyStatus({ cluster, resource: widgets, object: made, fieldManager: 'one' }, { seen: 1 }));
    await cluster.delete(widgets, keyOf(made));
    expect(await report()).toMatch(/^ApiError (404 NotFound|409 Conflict)$/);
    await cluster.create(widgets, widget({}, made.metadata.name));
    expect(await report()).toBe('ApiError 409 Conflict');
    expect((await read<Widget>(widgets, made))?.status).toBeUndefined();
  });

  it('writes a status over what others changed meanwhile, without losing it', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    await cluster.patch(widgets, keyOf(made), { spec: { size: 2 } });
    const written = await applyStatus({ cluster, resource: widgets, object: made, fieldManager: 'one' }, { seen: 1 });
    expect([written?.spec, written?.status]).toEqual([{ size: 2 }, { seen: 1 }]);
  });

  it('looks at the uid of what is applied, patched or reported; only the status of custom kinds ignores it', async () => {
    const uid = '00000000-0000-4000-8000-0000deadbeef';
    const made = await cluster.create<Widget>(widgets, widget());
    const wrong = { ...keyOf(made), uid };
    const waiting = await cluster.create<Pod>(resources.pods, pod());
    const node = await cluster.create(resources.nodes, { metadata: { name: `${namespace}-node` } });
    const status = { subresource: 'status' };
    const asStatus = { metadata: { uid }, status: {} };
    const attempts = {
      apply: () => cluster.apply<Widget>(widgets, { metadata: wrong, spec: { size: 2 } }, { fieldManager: 'one' }),
      patch: () => cluster.patch(widgets, keyOf(made), { metadata: { uid }, spec: { size: 2 } }),
      podPatch: () => cluster.patch(resources.pods, keyOf(waiting), { metadata: { uid, labels: { a: 'b' } } }),
      podStatus: () => cluster.patch(resources.pods, keyOf(waiting), asStatus, { type: 'strategic', ...status }),
      nodeStatus: () => cluster.patch(resources.nodes, keyOf(node), asStatus, { type: 'strategic', ...status }),
      replace: () => cluster.replace(widgets, { ...made, metadata: { ...made.metadata, uid } }),
    };
    for (const [name, attempt] of Object.entries(attempts)) {
      const error = await attempt().then(
        () => undefined,
        (e: unknown) => e,
      );
      expect([name, isConflict(error)]).toEqual([name, true]);
    }
    expect(await refusal(attempts.replace())).toBe('ApiError 409 Conflict');
    expect(await refusal(attempts.podStatus())).toBe('ApiError 422 Invalid');
    expect(await refusal(cluster.patch(widgets, keyOf(made), asStatus, status))).toBe('was accepted');
    await cluster.delete(resources.nodes, keyOf(node));
  });

  // ---- ending

  it('deletes what is there, and does not mind what is not', async () => {
    const made = await cluster.create(widgets, widget());
    const wrong = { uid: '00000000-0000-4000-8000-0000deadbeef' };
    expect(await refusal(cluster.delete(widgets, keyOf(made), wrong))).toBe('ApiError 409 Conflict');
    expect(await refusal(cluster.delete(widgets, keyOf(made), { resourceVersion: '1' }))).toBe('ApiError 409 Conflict');
    await cluster.delete(widgets, keyOf(made), { uid: made.metadata.uid });
    expect(await read(widgets, made)).toBeUndefined();
    await cluster.delete(widgets, keyOf(made));
  });

  it('keeps what has finalizers until they are gone, and takes no new ones then', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const held = await addFinalizer(cluster, widgets, made, 'gpulease.dev/a');
    const twice = await addFinalizer(cluster, widgets, made, 'gpulease.dev/b'); // from a stale copy
    expect([held?.metadata.finalizers, twice?.metadata.finalizers]).toEqual([
      ['gpulease.dev/a'],
      ['gpulease.dev/a', 'gpulease.dev/b'],
    ]);
    await cluster.delete(widgets, keyOf(made));
    const ending = await read<Widget>(widgets, made);
    expect(ending?.metadata.deletionTimestamp).toMatch(/Z$/);
    expect(ending?.metadata).toMatchObject({ deletionGracePeriodSeconds: 0, generation: 2 });
    const metadata = { finalizers: ['gpulease.dev/a', 'gpulease.dev/b', 'gpulease.dev/c'] };
    expect(await refusal(cluster.patch(widgets, keyOf(made), { metadata }))).toBe('ApiError 422 Invalid');
    await removeFinalizer(cluster, widgets, ending!, 'gpulease.dev/a');
    expect((await read(widgets, made))?.metadata.finalizers).toEqual(['gpulease.dev/b']);
    expect(await removeFinalizer(cluster, widgets, ending!, 'gpulease.dev/b')).toBeDefined();
    expect(await read(widgets, made)).toBeUndefined();
    expect(await removeFinalizer(cluster, widgets, ending!, 'gpulease.dev/b')).toBeUndefined();
  });

  it('lets a pod that has a node end in its own time', async () => {
    const running = await cluster.create<Pod>(resources.pods, pod('no-such-node'));
    await cluster.delete(resources.pods, keyOf(running), { gracePeriodSeconds: 25 });
    const ending = await read<Pod>(resources.pods, running);
    expect(ending?.metadata).toMatchObject({ deletionGracePeriodSeconds: 25 });
    const inSeconds = (Date.parse(ending!.metadata.deletionTimestamp!) - Date.now()) / 1000;
    expect(inSeconds).toBeGreaterThan(15);
    await cluster.delete(resources.pods, keyOf(running), { gracePeriodSeconds: 0, uid: running.metadata.uid });
    expect(await read(resources.pods, running)).toBeUndefined();

    const waiting = await cluster.create<Pod>(resources.pods, pod());
    await cluster.delete(resources.pods, keyOf(waiting));
    expect(await read(resources.pods, waiting)).toBeUndefined();

    const done = await cluster.create<Pod>(resources.pods, pod('no-such-node'));
    await cluster.patch(resources.pods, keyOf(done), { status: { phase: 'Succeeded' } }, { subresource: 'status' });
    await cluster.delete(resources.pods, keyOf(done));
    expect(await read(resources.pods, done)).toBeUndefined();
  });

  it('evicts and binds pods by their subresources', async () => {
    const made = await cluster.create<Pod>(resources.pods, pod());
    expect(made.status?.phase).toBe('Pending');
    await cluster.createSubresource(resources.pods, keyOf(made), 'binding', {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: keyOf(made),
      target: { apiVersion: 'v1', kind: 'Node', name: 'no-such-node' },
    });
    expect((await read<Pod>(resources.pods, made))?.spec?.nodeName).toBe('no-such-node');
    const eviction = { apiVersion: 'policy/v1', kind: 'Eviction', metadata: keyOf(made) };
    await cluster.createSubresource(resources.pods, keyOf(made), 'eviction', {
      ...eviction,
      deleteOptions: { gracePeriodSeconds: 20 },
    });
    expect((await read(resources.pods, made))?.metadata.deletionGracePeriodSeconds).toBe(20);
    const missing = { namespace, name: 'never-made' };
    expect(
      await refusal(cluster.createSubresource(resources.pods, missing, 'eviction', { ...eviction, metadata: missing })),
    ).toBe('ApiError 404 NotFound');
    await cluster.delete(resources.pods, keyOf(made), { gracePeriodSeconds: 0 });
  });

  it('adds ephemeral containers, and resizes, by subresources that change nothing else', async () => {
    interface Running extends KubeObject {
      spec: {
        containers: { name: string; image: string; resources?: { requests?: Record<string, string> } }[];
        ephemeralContainers?: { name: string; image: string }[];
      };
    }
    const made = await cluster.create<Running>(resources.pods, {
      metadata: at(),
      spec: { containers: [{ name: 'main', image: 'example.invalid/none', resources: { requests: { cpu: '1' } } }] },
    });
    const put = (object: Running, subresource: string) =>
      cluster.replace<Running>(resources.pods, object, { subresource });
    /** As it is now: the scheduler writes to it, too. */
    const write = async (subresource: string, change: (spec: Running['spec']) => Running['spec']) => {
      const { metadata, spec } = (await read<Running>(resources.pods, made))!;
      return put({ metadata: { ...metadata, resourceVersion: undefined }, spec: change(spec) }, subresource);
    };
    const debugged = await write('ephemeralcontainers', (spec) => ({
      ...spec,
      ephemeralContainers: [{ name: 'debug', image: 'example.invalid/none' }],
    }));
    expect(debugged.spec.ephemeralContainers).toMatchObject([{ name: 'debug' }]);
    const resized = await write('resize', (spec) => ({
      ...spec,
      containers: [{ ...spec.containers[0]!, resources: { requests: { cpu: '2' } } }],
    }));
    expect(resized.spec.containers[0]?.resources?.requests?.cpu).toBe('2');
    expect(await refusal(put({ ...made }, 'ephemeralcontainers'))).toBe('ApiError 409 Conflict');
    await cluster.delete(resources.pods, keyOf(made), { gracePeriodSeconds: 0 });
  });

  it('merges conditions and addresses of a pod’s status, and takes them away by name', async () => {
    interface Reported extends KubeObject {
      status?: { conditions?: { type: string }[]; podIPs?: { ip: string }[] };
    }
    const made = await cluster.create<Pod>(resources.pods, pod('no-such-node'));
    const write = (status: object) =>
      cluster.patch<Reported>(resources.pods, keyOf(made), { status }, { type: 'strategic', subresource: 'status' });
    await write({ conditions: [{ type: 'A', status: 'True' }], podIP: '10.0.0.1', podIPs: [{ ip: '10.0.0.1' }] });
    const after = await write({
      conditions: [
        { type: 'A', $patch: 'delete' },
        { type: 'B', status: 'True' },
      ],
      podIP: '10.0.0.2',
      podIPs: [{ ip: '10.0.0.1', $patch: 'delete' }, { ip: '10.0.0.2' }],
    });
    const types = after.status?.conditions?.map(({ type }) => type).filter((type) => /^[AB]$/.test(type));
    expect(types).toEqual(['B']);
    expect(after.status?.podIPs).toEqual([{ ip: '10.0.0.2' }]);
    await cluster.delete(resources.pods, keyOf(made), { gracePeriodSeconds: 0 });
  });

  it('gives tokens for service accounts', async () => {
    const account = await cluster.create(resources.serviceAccounts, { metadata: at() });
    const { status } = await cluster.createSubresource<{ status: { token: string; expirationTimestamp: string } }>(
      resources.serviceAccounts,
      keyOf(account),
      'token',
      { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 600 } },
    );
    expect(status.token.length).toBeGreaterThan(10);
    expect(Date.parse(status.expirationTimestamp)).toBeGreaterThan(Date.now() + 500_000);
  });

  it('ends a namespace with all that is in it, and lets nothing new in meanwhile', async () => {
    const where = await world.makeNamespace();
    const held: Widget = { metadata: { namespace: where, name: 'held', finalizers: ['gpulease.dev/a'] } };
    await cluster.create(widgets, held);
    await cluster.create(resources.secrets, { metadata: { namespace: where, name: 'inside' } });
    await cluster.delete(resources.namespaces, { name: where });
    const gone = await eventually(
      () => cluster.get(resources.secrets, { namespace: where, name: 'inside' }),
      (secret) => secret === undefined,
      'the Secret to go',
    );
    expect(gone).toBeUndefined();
    const ending = await cluster.get<KubeObject & { status?: { phase: string } }>(resources.namespaces, {
      name: where,
    });
    expect(ending?.status?.phase).toBe('Terminating');
    expect(await refusal(cluster.create(resources.secrets, { metadata: { namespace: where, name: 'late' } }))).toBe(
      'ApiError 403 Forbidden',
    );
    const waiting = await eventually(
      () => cluster.get<Widget>(widgets, keyOf(held)),
      (object) => object?.metadata.deletionTimestamp !== undefined,
      'the Widget to be marked',
    );
    await removeFinalizer(cluster, widgets, waiting!, 'gpulease.dev/a');
    await eventually(
      () => cluster.get(resources.namespaces, { name: where }),
      (found) => found === undefined,
      'the namespace to go',
    );
    expect(await refusal(cluster.create(resources.secrets, { metadata: { namespace: where, name: 'later' } }))).toBe(
      'ApiError 404 NotFound',
    );
  });

  // ---- watching

  async function listen(resource: Resource, resourceVersion: string, many: number, selectors: object = {}) {
    const stop = new AbortController();
    const heard: string[] = [];
    const request = {
      cluster,
      resource,
      namespace,
      resourceVersion,
      timeoutSeconds: 60,
      quietSeconds: 10,
      clock: systemClock,
    };
    await watchOnce(
      { ...request, ...selectors },
      ({ type, object }) => {
        if (type === 'BOOKMARK') return;
        heard.push(`${type} ${object.metadata.name}`);
        if (heard.length === many) stop.abort(new Error('enough'));
      },
      stop.signal,
    ).catch((error) => {
      if (!stop.signal.aborted) throw error;
    });
    return heard;
  }

  it('tells a watch all that happened since its version, in order', async () => {
    const { resourceVersion } = await cluster.list(widgets, { namespace });
    const [a, b] = [widget(), widget()];
    await cluster.create(widgets, a);
    await cluster.create(widgets, b);
    await cluster.patch(widgets, keyOf(a), { spec: { size: 2 } });
    await cluster.delete(widgets, keyOf(b));
    const { name } = a.metadata;
    expect(await listen(widgets, resourceVersion, 4)).toEqual([
      `ADDED ${name}`,
      `ADDED ${b.metadata.name}`,
      `MODIFIED ${name}`,
      `DELETED ${b.metadata.name}`,
    ]);
  });

  it('tells a watch with a selector of what comes into sight and leaves it', async () => {
    const made = await cluster.create(widgets, widget());
    const { resourceVersion } = await cluster.list(widgets, { namespace });
    const paint = (colour: string | null) => cluster.patch(widgets, keyOf(made), { metadata: { labels: { colour } } });
    await paint('red');
    await paint('blue');
    await paint('red');
    await cluster.patch(widgets, keyOf(made), { spec: { size: 5 } });
    await cluster.delete(widgets, keyOf(made));
    const { name } = made.metadata;
    const heard = await listen(widgets, resourceVersion, 5, { labelSelector: 'colour=red' });
    expect(heard).toEqual(['ADDED', 'DELETED', 'ADDED', 'MODIFIED', 'DELETED'].map((type) => `${type} ${name}`));
  });

  it('follows pods by their node', async () => {
    const { resourceVersion } = await cluster.list(resources.pods, { namespace });
    const mine = await cluster.create<Pod>(resources.pods, pod('mine'));
    await cluster.create<Pod>(resources.pods, pod('another'));
    const selectors = { fieldSelector: 'spec.nodeName=mine' };
    expect(await listen(resources.pods, resourceVersion, 1, selectors)).toEqual([`ADDED ${mine.metadata.name}`]);
    const { items } = await cluster.list(resources.pods, { namespace, ...selectors });
    expect(items.map((p) => p.metadata.name)).toEqual([mine.metadata.name]);
  });

  it('says that a version is too old to go on from', async () => {
    if ('expireHistory' in cluster) (cluster as ReturnType<typeof fakeCluster>).expireHistory();
    expect(await refusal(listen(widgets, '1', 1))).toBe('ApiError 410 Expired');
  });

  // ---- raw requests

  it('answers any raw request, with any status', async () => {
    const get = async (path: string) => {
      const response = await cluster.raw({ method: 'GET', path });
      const body = await readBody(response, path, { maxBytes: 1_000_000, timeoutSeconds: 10 });
      return [response.statusCode, JSON.parse(body.toString())] as const;
    };
    const made = await cluster.create<Secret>(resources.secrets, { metadata: at(), data: { a: 'MQ==' } });
    const path = `/api/v1/namespaces/${namespace}/secrets`;
    const [code, found] = await get(`${path}/${made.metadata.name}`);
    expect([code, found.data]).toEqual([200, { a: 'MQ==' }]);
    const [missing, status] = await get(`${path}/never-made`);
    expect([missing, status.kind, status.reason]).toEqual([404, 'Status', 'NotFound']);
    const [, list] = await get(`${path}?labelSelector=no%3Dsuch`);
    expect([list.kind, list.items ?? []]).toEqual(['SecretList', []]);
  });

  // ---- what the engine builds on it

  it('carries an informer and a controller', async () => {
    const informer = createInformer<Widget>({ cluster, resource: widgets, namespace });
    const seen: string[] = [];
    const controller = createController({
      name: 'conformance',
      watches: [watches(informer)],
      reconcile: async (key, signal) => {
        const object = informer.get(key);
        if (object?.spec?.colour !== 'watched') return {};
        await applyStatus(
          { cluster, resource: widgets, object, fieldManager: 'conformance' },
          { seen: object.metadata.generation },
          signal,
        );
        seen.push(key.name);
        return {};
      },
    });
    const stop = new AbortController();
    const running = Promise.all([informer.run(stop.signal), controller.run(stop.signal)]);
    const made = await cluster.create<Widget>(widgets, widget({ colour: 'watched' }));
    const status = () => read<Widget>(widgets, made).then((w) => w?.status?.seen);
    await eventually(status, (generation) => generation === 1, 'the first status');
    await cluster.patch(widgets, keyOf(made), { spec: { size: 9 } });
    await eventually(status, (generation) => generation === 2, 'the second status');
    const before = await read(widgets, made);
    await sleep(systemClock, 300);
    // An unchanged world writes nothing.
    expect((await read(widgets, made))?.metadata.resourceVersion).toBe(before?.metadata.resourceVersion);
    stop.abort(new Error('over'));
    await running;
    expect(seen.length).toBeGreaterThanOrEqual(2);
  });

  it('has one leader, and another when that one goes', async () => {
    const lock = { namespace, name: 'lock' };
    const lead = (identity: string) => {
      const stop = new AbortController();
      const onLead = (signal: AbortSignal) =>
        new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      const times = { leaseDurationSeconds: 3, renewDeadlineSeconds: 2, retrySeconds: 0.2 };
      return { stop, ...runAsLeader({ cluster, ...lock, identity, onLead, ...times }, stop.signal) };
    };
    const one = lead('one');
    await eventually(one.isLeader, Boolean, 'the first leader');
    const two = lead('two');
    await sleep(systemClock, 800);
    expect([one.isLeader(), two.isLeader()]).toEqual([true, false]);
    one.stop.abort(new Error('over'));
    expect(await one.ended).toBe('stopped');
    await eventually(two.isLeader, Boolean, 'the second leader');
    expect(one.isLeader()).toBe(false);
    two.stop.abort(new Error('over'));
    await two.ended;
    const lease = await cluster.get<KubeObject & { spec: object }>(resources.leases, lock);
    expect(lease?.spec).toMatchObject({ leaseTransitions: 1 });
  });

  it('takes events, and counts their repetitions', async () => {
    const made = await cluster.create<Widget>(widgets, widget());
    const recorder = createEventRecorder({ cluster, controller: 'gpulease.dev/conformance', instance: 'here' });
    recorder.event(made, 'Warning', 'Tried', 'ü'.repeat(2000), 'Try');
    await recorder.flush();
    recorder.event(made, 'Warning', 'Tried', 'ü'.repeat(2000), 'Try');
    await recorder.flush();
    recorder.event(
      { apiVersion: 'v1', kind: 'Node', metadata: { name: 'n', uid: 'u' } },
      'Normal',
      'Registered',
      'hello',
    );
    await recorder.flush();
    expect(recorder.dropped).toBe(0);
    const { items } = await cluster.list<KubeObject & { reason: string; series?: { count: number } }>(
      resources.eventsV1,
      { namespace },
    );
    expect(items.filter((e) => e.reason === 'Tried').map((e) => e.series?.count)).toEqual([2]);
  });

  it('keeps a value by compare-and-swap in a Secret', async () => {
    const where = at();
    const store = createSecretStore<{ n: number }>({ cluster, ...where });
    const other = createSecretStore<{ n: number }>({ cluster, ...where });
    const first = await store.save({ n: 1 }, (await store.load()).version);
    await expect(other.save({ n: 9 }, '')).rejects.toBeInstanceOf(StoreConflict);
    const second = await other.save({ n: 2 }, first);
    await expect(store.save({ n: 9 }, first)).rejects.toBeInstanceOf(StoreConflict);
    expect(await store.load()).toEqual({ value: { n: 2 }, version: second });
    await cluster.delete(resources.secrets, where);
    await expect(store.save({ n: 9 }, second)).rejects.toBeInstanceOf(StoreConflict);
  });
});
