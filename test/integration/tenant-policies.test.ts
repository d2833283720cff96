/**
 * The provider's own admission of tenants' pods, on a real API server: what the gateway lets through passes, and what goes
 * past the gateway, created by an administrator here, is refused in each of its disguises.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { runProviderCheck } from '../../operator/cmd/provider-check.ts';
import { admitPod, type PodContext } from '../../operator/core/allocation/admit-pod.ts';
import { anyImage } from '../../operator/core/allocation/images.ts';
import { type PodRules, plainRules } from '../../operator/core/allocation/pod-rules.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { tenantRole } from '../../operator/core/allocation/rights.ts';
import { leaseIdLabel, tenantObjects } from '../../operator/core/allocation/tenant.ts';
import { tenantPolicyName, tenantPolicyObjects } from '../../operator/core/allocation/tenant-policy.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import type { PlaneAccess } from '../../operator/sandbox/clusters/plane.ts';
import { eventually, planes } from '../support/clusters.ts';

type Json = Record<string, unknown>;

const gib = 1024 ** 3;
const room = { gpus: 2, cpuMillis: 4000, memoryBytes: 8 * gib, ephemeralBytes: 10 * gib, pods: 20 };
const mig = 'nvidia.com/mig-1g.10gb';
const digest = `@sha256:${'0a'.repeat(32)}`;
const tenantOf = (byte: string, more: Json = {}) => ({
  leaseId: `0x${byte.repeat(32)}` as const,
  chainId: 31337,
  escrow: `0x${'e'.repeat(40)}` as const,
  room,
  nodeName: 'node-a',
  ...more,
});
const plain = tenantOf('a1');
const ofMig = tenantOf('a2', { device: mig });
const trusted = tenantOf('a3', { tenantProfile: 'trusted' });
const tenants = [plain, ofMig, trusted];

let plane: PlaneAccess;

async function applyRules(rules: PodRules): Promise<void> {
  const cluster = connectCluster({ name: 'provider', kubeconfig: plane.kubeconfig });
  await applyManifests(cluster, tenantPolicyObjects(rules) as never[], { fieldManager: 'test' });
}

beforeAll(async () => {
  ({ provider: plane } = await planes());
  const cluster = connectCluster({ name: 'provider', kubeconfig: plane.kubeconfig });
  for (const lease of tenants) {
    const objects = tenantObjects(lease, { deniedCidrs: [] }).map(({ object }) => object);
    await applyManifests(cluster, [tenantRole, ...objects] as never[], { fieldManager: 'test' });
  }
  await applyRules(plainRules);
  // What is applied is used some moments later.
  await eventually(async () => (await create(bare({ hostPID: true }), trusted)).status === 403, 'policies');
});

afterAll(async () => {
  for (const { kind, metadata } of tenantPolicyObjects(plainRules))
    await plane.api.request(
      'DELETE',
      `/apis/admissionregistration.k8s.io/v1/${kind.toLowerCase().replace(/y$/, 'ie')}s/${metadata.name}`,
    );
  for (const lease of tenants)
    await plane.api.request('DELETE', `/api/v1/namespaces/${tenantNamespace(lease.leaseId)}`);
});

const contextOf = (lease: typeof plain & { device?: string }, rules?: PodRules): PodContext => ({
  namespace: tenantNamespace(lease.leaseId),
  leaseId: leaseIdLabel(lease.leaseId),
  nodeName: lease.nodeName,
  room,
  ...(lease.device === undefined ? {} : { device: lease.device }),
  ...((lease as { tenantProfile?: string }).tenantProfile === 'trusted' ? { profile: 'trusted' as const } : {}),
  ...(rules === undefined ? {} : { rules }),
});

const bare = (spec: Json = {}, container: Json = {}, metadata: Json = {}) => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name: 'pod', ...metadata },
  spec: { containers: [{ name: 'main', image: 'busybox', ...container }], ...spec },
});

/** As the gateway would create it. */
const admitted = (pod: unknown = bare(), lease = plain, rules?: PodRules): Json & { spec: Json; metadata: Json } =>
  admitPod(pod, contextOf(lease, rules)) as never;

async function create(pod: Json, lease = plain): Promise<{ status: number; message: string }> {
  const namespace = tenantNamespace(lease.leaseId);
  const path = `/api/v1/namespaces/${namespace}/pods?dryRun=All`;
  const object = { ...pod, metadata: { ...(pod.metadata as Json), namespace } };
  const answer = await plane.api.request('POST', path, object);
  return { status: answer.status, message: answer.status >= 300 ? String(answer.json<Json>().message) : '' };
}

/** What the gateway made of a pod, changed afterwards by somebody who is not the gateway. */
const changed = (change: (pod: never) => void, pod: unknown = bare(), lease = plain) => {
  const copy = structuredClone(admitted(pod, lease));
  change(copy as never);
  return copy;
};
interface Loose extends Json {
  // biome-ignore lint/suspicious/noExplicitAny: disguises are made by hand
  spec: any;
  // biome-ignore lint/suspicious/noExplicitAny: disguises are made by hand
  metadata: any;
}

const gpu = { resources: { limits: { 'nvidia.com/gpu': '1' } } };
const handler = (host: string) => ({ httpGet: { host, port: 80, path: '/' } });

describe('what the gateway admits, the provider’s API server admits', () => {
  const rich = bare(
    {
      initContainers: [{ name: 'init', image: 'busybox', restartPolicy: 'Always' }],
      volumes: [
        { name: 'scratch', emptyDir: {} },
        { name: 'conf', configMap: { name: 'conf' } },
        { name: 'all', projected: { sources: [{ secret: { name: 's' } }, { downwardAPI: { items: [] } }] } },
        { name: 'data', persistentVolumeClaim: { claimName: 'data' } },
      ],
      securityContext: { runAsUser: 1000, fsGroup: 1000 },
    },
    {
      env: [
        { name: 'A', value: 'b' },
        { name: 'NVIDIA_DRIVER_CAPABILITIES', value: 'compute,utility' },
      ],
      envFrom: [{ configMapRef: { name: 'env' } }, { prefix: 'MY_', secretRef: { name: 'env' } }],
      volumeMounts: [{ name: 'scratch', mountPath: '/scratch' }],
      livenessProbe: { httpGet: { port: 80, path: '/' } },
      lifecycle: { preStop: { sleep: { seconds: 1 } } },
      securityContext: { capabilities: { add: ['NET_BIND_SERVICE'], drop: ['ALL'] } },
    },
  );
  test.each([
    ['a bare pod', admitted(), plain],
    ['a pod with GPUs', admitted(bare({}, gpu)), plain],
    ['a pod with parts of GPUs', admitted(bare({}, gpu), ofMig), ofMig],
    ['a rich pod', admitted(rich), plain],
    [
      'a pod of a trusted tenant on its host',
      admitted(bare({ hostNetwork: true, volumes: [{ name: 'h', hostPath: { path: '/' } }] }), trusted),
      trusted,
    ],
  ])('%s', async (_name, pod, lease) => {
    expect(await create(pod, lease)).toEqual({ status: 201, message: '' });
  });
});

describe('what goes past the gateway is refused', () => {
  const disguises: Record<string, [change: (pod: Loose) => void, says: RegExp, pod?: unknown, lease?: typeof plain]> = {
    'no label of its lease': [({ metadata }) => delete metadata.labels['gpulease.dev/lease-id'], /label/],
    'another account': [({ spec }) => (spec.serviceAccountName = 'tenant'), /without a token/],
    'a token': [({ spec }) => (spec.automountServiceAccountToken = true), /without a token/],
    'a projected token': [
      ({ spec }) => (spec.volumes = [{ name: 't', projected: { sources: [{ serviceAccountToken: { path: 't' } }] } }]),
      /tokens/,
    ],
    'another node by name': [({ spec }) => (spec.nodeName = 'node-b'), /tied to the node/],
    'another node by selector': [
      ({ spec }) => (spec.nodeSelector = { 'kubernetes.io/hostname': 'node-b' }),
      /tied to the node/,
    ],
    'no node': [({ spec }) => delete spec.affinity, /tied to the node/],
    'another node by affinity': [
      ({ spec }) =>
        (spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].values =
          ['node-b']),
      /tied to the node/,
    ],
    'another node as an alternative': [
      ({ spec }) =>
        spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms.push({
          matchExpressions: [{ key: 'a', operator: 'DoesNotExist' }],
        }),
      /tied to the node/,
    ],
    'tolerating everything': [({ spec }) => spec.tolerations.push({ operator: 'Exists' }), /tolerates no taints/],
    'a priority of the system': [({ spec }) => (spec.priorityClassName = 'system-node-critical'), /priority/],
    'processes of the host, though trusted': [
      ({ spec }) => (spec.hostPID = true),
      /processes of the host/,
      bare(),
      trusted,
    ],
    'privileged, though trusted': [
      ({ spec }) => (spec.containers[0].securityContext = { privileged: true }),
      /privileged/,
      bare(),
      trusted,
    ],
    'a capability, though trusted': [
      ({ spec }) => (spec.containers[0].securityContext = { capabilities: { add: ['SYS_ADMIN'] } }),
      /capability/,
      bare(),
      trusted,
    ],
    'the network of the host': [({ spec }) => (spec.hostNetwork = true), /PodSecurity|network/],
    'files of the host': [
      ({ spec }) => (spec.volumes = [{ name: 'h', hostPath: { path: '/' } }]),
      /PodSecurity|files of the host/,
    ],
    'a CSI volume': [({ spec }) => (spec.volumes = [{ name: 'c', csi: { driver: 'x' } }]), /volumes of tenants/],
    'an NFS volume': [
      ({ spec }) => (spec.volumes = [{ name: 'c', nfs: { server: 'x', path: '/' } }]),
      /volumes of tenants/,
    ],
    'devices of another name': [({ spec }) => (spec.containers[0].resources.limits[mig] = '1'), /devices of its lease/],
    'whole GPUs for parts of them': [
      ({ spec }) => (spec.containers[0].resources.limits['nvidia.com/gpu'] = '1'),
      /devices of its lease/,
      bare(),
      ofMig,
    ],
    'a claim of devices': [
      ({ spec }) => (spec.resourceClaims = [{ name: 'gpu', resourceClaimName: 'gpu' }]),
      /devices of its lease/,
    ],
    'every GPU by variable': [
      ({ spec }) => (spec.containers[0].env = [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }]),
      /NVIDIA_VISIBLE_DEVICES/,
    ],
    'the variable twice': [
      ({ spec }) => spec.containers[0].env.push({ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }),
      /NVIDIA_VISIBLE_DEVICES/,
    ],
    'no word of the variable, so that the image’s holds': [
      ({ spec }) => delete spec.containers[0].env,
      /NVIDIA_VISIBLE_DEVICES/,
    ],
    'the variable from a Secret': [
      ({ spec }) =>
        (spec.containers[0].env = [
          { name: 'NVIDIA_VISIBLE_DEVICES', valueFrom: { secretKeyRef: { name: 's', key: 'k' } } },
        ]),
      /NVIDIA_VISIBLE_DEVICES/,
    ],
    'the variable beside a GPU': [
      ({ spec }) => (spec.containers[0].env = [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }]),
      /NVIDIA_VISIBLE_DEVICES/,
      bare({}, gpu),
    ],
    'other device variables': [
      ({ spec }) => spec.containers[0].env.push({ name: 'NVIDIA_IMEX_CHANNELS', value: '0' }),
      /choose devices/,
    ],
    'every capability of the driver': [
      ({ spec }) => spec.containers[0].env.push({ name: 'NVIDIA_DRIVER_CAPABILITIES', value: 'all' }),
      /choose devices/,
    ],
    'a prefix that completes the variable': [
      ({ spec }) => (spec.containers[0].envFrom = [{ prefix: 'NVIDIA_VISIBLE_', configMapRef: { name: 'c' } }]),
      /prefix/,
    ],
    'a mount that means a device': [
      ({ spec }) => {
        spec.volumes = [{ name: 'n', emptyDir: {} }];
        spec.containers[0].volumeMounts = [{ name: 'n', mountPath: '/var/run/../run/nvidia-container-devices/all' }];
      },
      /give me this device/,
    ],
    'a device by annotation': [
      ({ metadata }) => (metadata.annotations = { 'cdi.k8s.io/x': 'nvidia.com/gpu=all' }),
      /annotations/,
    ],
    'a device by NVIDIA’s annotation': [
      ({ metadata }) => (metadata.annotations = { 'nvidia.cdi.k8s.io/container.main': 'all' }),
      /annotations/,
    ],
    'a probe of the provider’s network': [
      ({ spec }) => (spec.containers[0].livenessProbe = handler('169.254.169.254')),
      /PodSecurity|probe or hook/,
    ],
    'a hook into the provider’s network': [
      ({ spec }) => (spec.containers[0].lifecycle = { postStart: handler('10.0.0.1') }),
      /PodSecurity|probe or hook/,
    ],
  };
  test.each(Object.entries(disguises))('%s', async (_name, [change, says, pod = bare(), lease = plain]) => {
    const { status, message } = await create(changed(change as never, pod, lease), lease);
    expect({ status, message }).toEqual({ status: 403, message: expect.stringMatching(says) });
  });

  test.each([
    ['a Secret that becomes a token', 'secrets', { type: 'kubernetes.io/service-account-token' }],
    ['a Secret for the bootstrap of nodes', 'secrets', { type: 'bootstrap.kubernetes.io/token' }],
    ['a ConfigMap that becomes the variable', 'configmaps', { data: { NVIDIA_VISIBLE_DEVICES: 'all' } }],
    ['a Secret that becomes the variable', 'secrets', { data: { NVIDIA_VISIBLE_DEVICES: 'YWxs' } }],
  ])('%s', async (_name, plural, more) => {
    const path = `/api/v1/namespaces/${tenantNamespace(plain.leaseId)}/${plural}?dryRun=All`;
    const metadata = { name: 'x', annotations: { 'kubernetes.io/service-account.name': 'tenant' } };
    const { status } = await plane.api.request('POST', path, { metadata, ...more });
    expect(status).toBe(403);
  });

  test('a claim that names somebody’s volume', async () => {
    const path = `/api/v1/namespaces/${tenantNamespace(plain.leaseId)}/persistentvolumeclaims?dryRun=All`;
    const spec = {
      accessModes: ['ReadWriteOnce'],
      resources: { requests: { storage: '1Gi' } },
      volumeName: 'pv-of-another',
    };
    const { status } = await plane.api.request('POST', path, { metadata: { name: 'x' }, spec });
    expect(status).toBe(403);
  });
});

test('pods outside of tenants are left alone', async () => {
  const { status } = await plane.api.request(
    'POST',
    '/api/v1/namespaces/default/pods?dryRun=All',
    bare({ hostPID: true }),
  );
  expect(status).toBe(201);
});

test('a pod of thousands of variables is judged within the budget of the API server', async () => {
  const env = Array.from({ length: 4000 }, (_, at) => ({ name: `VARIABLE_${at}`, value: 'x'.repeat(40) }));
  const started = performance.now();
  expect(await create(admitted(bare({}, { env })))).toEqual({ status: 201, message: '' });
  console.log(JSON.stringify({ podOf4000VariablesMs: Math.round(performance.now() - started) }));
});

describe('where the provider chose more', () => {
  const rules: PodRules = {
    podSecurity: 'restricted',
    runtimeClass: 'gvisor',
    images: { allow: ['docker.io/library/', 'ghcr.io/acme/'], deny: ['ghcr.io/acme/bad'], digestsOnly: true },
  };
  const chosen = (image: string) => admitted(bare({}, { image }), plain, { ...rules, images: anyImage });
  beforeAll(async () => {
    await plane.api.call('POST', '/apis/node.k8s.io/v1/runtimeclasses', {
      metadata: { name: 'gvisor' },
      handler: 'runsc',
    });
    const cluster = connectCluster({ name: 'provider', kubeconfig: plane.kubeconfig });
    const objects = tenantObjects(plain, { deniedCidrs: [], podSecurity: 'restricted' }).map(({ object }) => object);
    await applyManifests(cluster, objects as never[], { fieldManager: 'test' });
    await applyRules(rules);
    await eventually(async () => (await create(chosen(`quay.io/x${digest}`))).status === 403, 'the policy to be used');
  });
  afterAll(async () => {
    await plane.api.request('DELETE', '/apis/node.k8s.io/v1/runtimeclasses/gvisor');
  });

  test.each([
    ['docker hub, by its short name', `busybox${digest}`],
    ['docker hub, by its long name', `docker.io/library/busybox${digest}`],
    ['a registry that is allowed', `ghcr.io/acme/good${digest}`],
  ])('runs, restricted and in the sandbox: %s', async (_name, image) => {
    const pod = admitted(bare({}, { image }), plain, rules);
    expect(pod.spec).toMatchObject({ runtimeClassName: 'gvisor', securityContext: { runAsNonRoot: true } });
    expect(await create(pod)).toEqual({ status: 201, message: '' });
  });

  test.each([
    ['another registry', `quay.io/acme/good${digest}`],
    ['another folder of docker hub', `somebody/busybox${digest}`],
    ['what is denied', `ghcr.io/acme/bad-one${digest}`],
    ['a tag', 'busybox:1.37'],
    ['a registry that looks like a folder', `docker.io.evil.example/library/busybox${digest}`],
  ])('refuses an image of %s, at the gateway and behind it', async (_name, image) => {
    expect(() => admitted(bare({}, { image }), plain, rules)).toThrow(/provider/);
    expect(await create(chosen(image))).toMatchObject({ status: 403, message: expect.stringContaining('images') });
  });

  test('refuses to leave the sandbox', async () => {
    const pod = admitted(bare({}, { image: `busybox${digest}` }), plain, rules);
    delete pod.spec.runtimeClassName;
    expect(await create(pod)).toMatchObject({ status: 403, message: expect.stringContaining('gvisor') });
  });

  test('refuses what "restricted" refuses', async () => {
    const pod = admitted(bare({}, { image: `busybox${digest}` }), plain, rules);
    delete pod.spec.securityContext;
    expect(await create(pod)).toMatchObject({ status: 403, message: expect.stringContaining('PodSecurity') });
  });
});

test('`gpulease provider check` reads this cluster, tries Pod Security in it, and leaves nothing behind', async () => {
  const said: string[] = [];
  const io = {
    env: {},
    stdin: async () => '',
    out: (text: string) => void said.push(text),
    err: (text: string) => console.error(text),
  };
  const args = ['--kubeconfig', plane.kubeconfigPath, '--format', 'json', '--runtime-class', 'kata'];
  expect(await runProviderCheck(args, io)).toBe(1);
  const findings = JSON.parse(said.join('')) as { check: string; verdict: string; fix?: string }[];
  const verdicts = Object.fromEntries(findings.map(({ check, verdict }) => [check, verdict]));
  expect(verdicts).toMatchObject({
    kubernetes: 'ok',
    'admission policies': 'ok',
    'pod security': 'ok',
    'network policies': 'unknown',
    'offered nodes': 'refused',
    'runtime class': 'refused',
  });
  for (const { verdict, fix } of findings) expect(fix !== undefined).toBe(verdict !== 'ok');
  const { items } = await plane.api.call<{ items: { metadata: Json; status?: Json }[] }>('GET', '/api/v1/namespaces');
  const left = items.filter(({ metadata }) => String(metadata.name).startsWith('gpulease-check-'));
  expect(left.every(({ metadata }) => metadata.deletionTimestamp !== undefined)).toBe(true);
});

test('the policies are named after us, so that who removes us finds them', () => {
  for (const { metadata } of tenantPolicyObjects(plainRules))
    expect(metadata.name.startsWith(tenantPolicyName)).toBe(true);
});
