/** Pods and other objects that want more than a tenant may have, in many disguises; and what was made of those that are taken. */
import { type Attack, must, refused } from '../attack.ts';
import { ask, type Target } from '../target.ts';

type Json = Record<string, unknown>;
interface Seen {
  spec: Json & { containers: Json[]; volumes?: Json[] };
  metadata: { namespace: string; labels?: Json; annotations?: Json; ownerReferences?: object[]; finalizers?: object[] };
}

const own = (target: Target, rest: string) => `/v1/leases/${target.mallory.leaseId}/kube/${rest}`;

const container = (more: Json = {}): Json => ({ name: 'c', image: 'registry.example/none:1', ...more });
let names = 0;
const pod = (spec: Json = {}, one: Json = {}, metadata: Json = {}): Json => {
  names += 1;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: `evil-${names}`, ...metadata },
    spec: { restartPolicy: 'Never', terminationGracePeriodSeconds: 0, containers: [container(one)], ...spec },
  };
};
const security = (context: Json) => pod({}, { securityContext: context });
const env = (name: string, value: string) => pod({}, { env: [{ name, value }] });
const volume = (source: Json) =>
  pod({ volumes: [{ name: 'v', ...source }] }, { volumeMounts: [{ name: 'v', mountPath: '/v' }] });

const plainTaken = new WeakSet<Target>();

/** A pod that wants nothing is taken: what is refused below is refused for what it wants. */
async function mustTakePlain(target: Target): Promise<void> {
  if (plainTaken.has(target)) return;
  const token = await target.token();
  const made = pod();
  const { status, body } = await ask(target, { method: 'POST', path: own(target, 'pods'), body: made, token });
  must(status === 201, `a plain pod is not taken: ${status} ${body.slice(0, 200)}`);
  const { name } = made.metadata as { name: string };
  await ask(target, { method: 'DELETE', path: own(target, `pods/${name}?gracePeriodSeconds=0`), token });
  plainTaken.add(target);
}

/** 422 for all of them. */
const outright: readonly (readonly [name: string, object: Json])[] = [
  ['privileged', security({ privileged: true })],
  [
    'privileged, in an init container',
    pod({ initContainers: [container({ name: 'i', securityContext: { privileged: true } })] }),
  ],
  [
    'privileged, in an ephemeral container from the start',
    pod({ ephemeralContainers: [container({ name: 'e', securityContext: { privileged: true } })] }),
  ],
  ['every capability', security({ capabilities: { add: ['ALL'] } })],
  ['SYS_ADMIN, in small letters', security({ capabilities: { add: ['sys_admin'] } })],
  ['CAP_SYS_ADMIN, by its long name', security({ capabilities: { add: ['CAP_SYS_ADMIN'] } })],
  ['an unmasked /proc', security({ procMount: 'Unmasked' })],
  ['no seccomp', security({ seccompProfile: { type: 'Unconfined' } })],
  ['no AppArmor', security({ appArmorProfile: { type: 'Unconfined' } })],
  ['a type of SELinux that may everything', security({ seLinuxOptions: { type: 'spc_t' } })],
  ['a host process of Windows', security({ windowsOptions: { hostProcess: true } })],
  ['the host’s network', pod({ hostNetwork: true })],
  ['the host’s processes', pod({ hostPID: true })],
  ['the host’s IPC', pod({ hostIPC: true })],
  ['a port of the host', pod({}, { ports: [{ containerPort: 80, hostPort: 80 }] })],
  ['the host’s files', volume({ hostPath: { path: '/' } })],
  ['the containerd socket', volume({ hostPath: { path: '/run/containerd/containerd.sock', type: 'Socket' } })],
  ['a volume of NFS', volume({ nfs: { server: '10.0.0.1', path: '/' } })],
  ['a volume of iSCSI', volume({ iscsi: { targetPortal: '10.0.0.1', iqn: 'iqn.x', lun: 0 } })],
  ['a CSI volume of a driver that may everything', volume({ csi: { driver: 'hostpath.csi.k8s.io' } })],
  ['a FlexVolume', volume({ flexVolume: { driver: 'example/sh' } })],
  [
    'a token of a service account, projected',
    volume({ projected: { sources: [{ serviceAccountToken: { path: 't', audience: 'api' } }] } }),
  ],
  [
    'a bundle of the cluster’s certificates',
    volume({ projected: { sources: [{ clusterTrustBundle: { name: 'x', path: 'x' } }] } }),
  ],
  ['sysctls of the kernel', pod({ securityContext: { sysctls: [{ name: 'kernel.msgmax', value: '1' }] } })],
  ['every GPU, by the variable of images', env('NVIDIA_VISIBLE_DEVICES', 'all')],
  ['every GPU, by its number', env('NVIDIA_VISIBLE_DEVICES', '0')],
  ['more of the driver', env('NVIDIA_DRIVER_CAPABILITIES', 'all')],
  ['every GPU, by the annotation of CDI', pod({}, {}, { annotations: { 'cdi.k8s.io/x': 'nvidia.com/gpu=all' } })],
  [
    'every GPU, by a mount of the list of devices',
    pod(
      { volumes: [{ name: 'v', emptyDir: {} }] },
      { volumeMounts: [{ name: 'v', mountPath: '/var/run/nvidia-container-devices/all' }] },
    ),
  ],
  [
    'the list of devices, by a path that climbs',
    pod(
      { volumes: [{ name: 'v', emptyDir: {} }] },
      { volumeMounts: [{ name: 'v', mountPath: '/tmp/../var/run/nvidia-container-devices/all' }] },
    ),
  ],
  ['more GPUs than the lease has', pod({}, { resources: { limits: { 'nvidia.com/gpu': '16' } } })],
  ['half a GPU of another kind', pod({}, { resources: { limits: { 'nvidia.com/mig-1g.5gb': '1' } } })],
  [
    'a claim to devices',
    pod({ resourceClaims: [{ name: 'g', resourceClaimName: 'all-gpus' }] }, { resources: { claims: [{ name: 'g' }] } }),
  ],
  ['negative memory, so that others’ counts grow', pod({}, { resources: { requests: { memory: '-64Gi' } } })],
  ['memory beyond the lease', pod({}, { resources: { requests: { memory: '1000Ti' } } })],
  ['a name that climbs', pod({}, {}, { name: '../../kube-system/evil' })],
  ['a field that is not known yet', pod({ hostDevices: ['/dev/mem'] })],
  [
    'ten thousand containers',
    pod({ containers: Array.from({ length: 10_000 }, (_, i) => ({ name: `c${i}`, image: 'x' })) }),
  ],
];

/** Taken, but made harmless: `harmless` says what is wrong with what became of it. */
const pinned: readonly (readonly [
  name: string,
  object: Json,
  wrong: (pod: Seen, target: Target) => string | undefined,
])[] = [
  [
    'without AppArmor, by the old annotation',
    pod({}, {}, { annotations: { 'container.apparmor.security.beta.kubernetes.io/c': 'unconfined' } }),
    ({ metadata }) =>
      Object.keys(metadata.annotations ?? {}).some((key) => key.includes('apparmor'))
        ? 'the annotation is there'
        : undefined,
  ],
  [
    'in another runtime',
    pod({ runtimeClassName: 'privileged-runtime' }),
    ({ spec }) => (spec.runtimeClassName === 'privileged-runtime' ? 'it is in that runtime' : undefined),
  ],
  [
    'on another node, by name',
    pod({ nodeName: 'somebody-elses-node' }),
    ({ spec }) => (spec.nodeName === 'somebody-elses-node' ? 'it is there' : undefined),
  ],
  [
    'on the control plane, with tolerations of everything',
    pod({ nodeSelector: { 'node-role.kubernetes.io/control-plane': '' }, tolerations: [{ operator: 'Exists' }] }),
    ({ spec }) =>
      JSON.stringify(spec.nodeSelector ?? {}).includes('control-plane') ||
      (spec.tolerations as Json[] | undefined)?.some(({ key }) => key === undefined)
        ? JSON.stringify([spec.nodeSelector, spec.tolerations])
        : undefined,
  ],
  [
    'before everybody else',
    pod({ priorityClassName: 'system-node-critical', priority: 2_000_001_000 }),
    ({ spec }) => (((spec.priority as number | undefined) ?? 0) > 0 ? `priority ${String(spec.priority)}` : undefined),
  ],
  [
    'as the tenant’s own account, with a token',
    pod({ serviceAccountName: 'tenant', automountServiceAccountToken: true }),
    ({ spec }) =>
      spec.serviceAccountName === 'tenant' || spec.automountServiceAccountToken !== false
        ? JSON.stringify([spec.serviceAccountName, spec.automountServiceAccountToken])
        : undefined,
  ],
  [
    'in another namespace',
    pod({}, {}, { namespace: 'kube-system' }),
    ({ metadata }, target) =>
      target.real && metadata.namespace !== target.real.tenantNamespace ? metadata.namespace : undefined,
  ],
  [
    'with labels that a Service of the provider would select, and ours',
    pod({}, {}, { labels: { app: 'ingress', 'gpulease.dev/lease-id': 'f'.repeat(63) } }),
    ({ metadata }) =>
      metadata.labels?.['gpulease.dev/lease-id'] === 'f'.repeat(63) ? 'the label is there' : undefined,
  ],
  [
    'with owners and finalizers, so that it cannot be deleted',
    pod(
      {},
      {},
      { finalizers: ['evil.example/stay'], ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: 'n', uid: 'u' }] },
    ),
    ({ metadata }) =>
      metadata.finalizers?.length || metadata.ownerReferences?.length
        ? JSON.stringify(metadata).slice(0, 200)
        : undefined,
  ],
  [
    'without limits, to take the memory of others',
    pod(),
    ({ spec }) => {
      const limits = (spec.containers[0]?.resources as { limits?: Json } | undefined)?.limits;
      return limits?.memory !== undefined && limits.cpu !== undefined ? undefined : JSON.stringify(limits);
    },
  ],
  [
    'without a GPU, in an image that asks for all of them',
    pod(),
    ({ spec }) => {
      const variables = (spec.containers[0]?.env ?? []) as { name: string; value?: string }[];
      return variables.some(({ name, value }) => name === 'NVIDIA_VISIBLE_DEVICES' && value === 'void')
        ? undefined
        : JSON.stringify(variables);
    },
  ],
];

const config = (kind: 'configmaps' | 'secrets' | 'persistentvolumeclaims', name: string, object: Json): Attack => ({
  who: 'consumer',
  name: `${kind === 'secrets' ? 'a Secret' : kind === 'configmaps' ? 'a ConfigMap' : 'a claim'} ${name}`,
  expected: '400, 403 or 422',
  run: async (target) =>
    refused(
      await ask(target, { method: 'POST', path: own(target, kind), body: object, token: await target.token() }),
      [400, 403, 422],
    ),
});

const others: readonly Attack[] = [
  config('secrets', 'that the cluster fills with a token', {
    metadata: { name: 'token', annotations: { 'kubernetes.io/service-account.name': 'tenant' } },
    type: 'kubernetes.io/service-account-token',
  }),
  config('secrets', 'that lets nodes join', {
    metadata: { name: 'bootstrap-token-abcdef' },
    type: 'bootstrap.kubernetes.io/token',
    data: {},
  }),
  config('secrets', 'that an owner elsewhere would take along', {
    metadata: { name: 's', ownerReferences: [{ apiVersion: 'v1', kind: 'Namespace', name: 'kube-system', uid: 'x' }] },
  }),
  config('configmaps', 'that shows every GPU to who reads it as variables', {
    metadata: { name: 'sly' },
    data: { NVIDIA_VISIBLE_DEVICES: 'all' },
  }),
  config('configmaps', 'with a name that climbs', { metadata: { name: '../kube-system/x' }, data: {} }),
  config('persistentvolumeclaims', 'bound to somebody else’s volume', {
    metadata: { name: 'c' },
    spec: { accessModes: ['ReadWriteOnce'], volumeName: 'pv-of-others', resources: { requests: { storage: '1Gi' } } },
  }),
  {
    who: 'consumer',
    name: 'an ephemeral container that is privileged, in a pod that runs',
    expected: '422',
    async run(target) {
      const made = pod();
      const token = await target.token();
      const name = (made.metadata as { name: string }).name;
      const { status } = await ask(target, { method: 'POST', path: own(target, 'pods'), body: made, token });
      must(status === 201, `there is no pod that runs: ${status}`);
      const spec = made.spec as Json;
      const body = {
        ...made,
        spec: { ...spec, ephemeralContainers: [container({ name: 'debug', securityContext: { privileged: true } })] },
      };
      const seen = refused(
        await ask(target, { method: 'PUT', path: own(target, `pods/${name}`), body, token }),
        422,
        /ephemeralContainers/,
      );
      await ask(target, { method: 'DELETE', path: own(target, `pods/${name}?gracePeriodSeconds=0`), token });
      return seen;
    },
  },
  {
    who: 'consumer',
    name: 'the node under a pod that runs exchanged for another',
    expected: 'refused, or it stays where it is',
    needs: 'clusters',
    async run(target) {
      const made = pod();
      const token = await target.token();
      const name = (made.metadata as { name: string }).name;
      await ask(target, { method: 'POST', path: own(target, 'pods'), body: made, token });
      const body = { ...made, spec: { ...(made.spec as Json), nodeName: 'somebody-elses-node' } };
      const answer = await ask(target, { method: 'PUT', path: own(target, `pods/${name}`), body, token });
      const now = JSON.parse((await ask(target, { path: own(target, `pods/${name}`), token })).body) as Seen;
      await ask(target, { method: 'DELETE', path: own(target, `pods/${name}?gracePeriodSeconds=0`), token });
      must(now.spec.nodeName !== 'somebody-elses-node', 'it is on the other node');
      return `${answer.status}, it is on ${String(now.spec.nodeName ?? 'no node yet')}`;
    },
  },
];

export const pods: readonly Attack[] = [
  ...outright.map(
    ([name, object]): Attack => ({
      who: 'consumer',
      name: `a pod: ${name}`,
      expected: '422',
      async run(target) {
        await mustTakePlain(target);
        const token = await target.token();
        return refused(
          await ask(target, { method: 'POST', path: own(target, 'pods'), body: object, token }),
          [400, 422],
        );
      },
    }),
  ),
  ...pinned.map(
    ([name, object, wrong]): Attack => ({
      who: 'consumer',
      name: `a pod: ${name}`,
      expected: '422, or made harmless',
      async run(target) {
        const token = await target.token();
        const answer = await ask(target, { method: 'POST', path: own(target, 'pods'), body: object, token });
        if (answer.status === 422 || answer.status === 400) return refused(answer, [400, 422]);
        must(answer.status === 201, `${answer.status} ${answer.body.slice(0, 200)}`);
        const made = JSON.parse(answer.body) as Seen & { metadata: { name: string } };
        await ask(target, {
          method: 'DELETE',
          path: own(target, `pods/${made.metadata.name}?gracePeriodSeconds=0`),
          token,
        });
        const why = wrong(made, target);
        must(why === undefined, why ?? '');
        return 'taken, and made harmless';
      },
    }),
  ),
  ...others,
];
