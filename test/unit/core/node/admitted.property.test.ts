/**
 * Two decisions, made apart: what the consumer's side carries, and what the provider admits. What the first lets through, the
 * second has to take, or pods would fail at the provider for what could have been said at once; the cases in which it does
 * not, on purpose, are the last table here.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { admitPod } from '../../../../operator/core/allocation/admit-pod.ts';
import { Refusal } from '../../../../operator/core/allocation/refusal.ts';
import type { Container, Pod, PodSpec } from '../../../../operator/core/node/pod.ts';
import { translatePod } from '../../../../operator/core/node/translate-pod.ts';
import { view as bareView, pod, serviceAccountVolume } from './builders.ts';

const gib = 1024 ** 3;
/** Every claim is one that the provider stores. */
const view = { ...bareView, claimOf: () => ({ remoteName: 'data-0123' }) };
/** As much as `view` says that the node has. */
const context = {
  namespace: 'gl-0',
  leaseId: 'abc',
  nodeName: 'node-a',
  room: { gpus: 2, cpuMillis: 8000, memoryBytes: 16 * gib, ephemeralBytes: 20 * gib, pods: 20 },
};

const some = fc.constantFrom;
/** Seldom what is refused: a pod has many fields, and one is enough. */
const mostly = <T>(good: readonly T[], refused: readonly T[]): fc.Arbitrary<T> =>
  fc.oneof({ arbitrary: some(...good), weight: 200 }, { arbitrary: some(...refused), weight: 1 });
const flag = fc.boolean();
const id = some(0, 1000, 65_534);
/** Each field sometimes, so that pods differ in what they have at all. */
const object = (fields: Record<string, fc.Arbitrary<unknown>>, requiredKeys: string[] = []) =>
  fc.record(fields, { requiredKeys });
const few = <T>(item: fc.Arbitrary<T>) => fc.array(item, { maxLength: 2 });

const quantity = some('0', '1', '250m', '1Gi', '3', 2);
const amounts = object({
  cpu: mostly(['0', '500m', '2'], ['8', '9']),
  memory: mostly(['0', '1Gi', '2Gi'], ['16Gi', '17Gi']),
  'ephemeral-storage': mostly(['1Gi'], ['21Gi']),
  'nvidia.com/gpu': mostly<string | number>(['0', 1], ['2', '3']),
  'example.com/other': mostly(['0'], ['1']),
  'hugepages-2Mi': mostly(['0'], ['2Mi']),
});
const resources = fc
  .tuple(amounts, fc.option(amounts), mostly<unknown[]>([[]], [[{ name: 'c' }]]))
  .map(([limits, requests, claims]) => {
    // As the API server has it: requests of extended resources equal their limits, and are no more than limits.
    const extended = Object.fromEntries(
      Object.entries(limits).filter(([name]) => /[/-]/.test(name) && name.includes('.')),
    );
    return { limits, ...(requests && { requests: { ...pick(requests, ['cpu', 'memory']), ...extended } }), claims };
  });
const wholeResources = object(
  {
    // No less than any container asks for: the API server sees to that.
    limits: object({ cpu: some('9', '10'), memory: some('17Gi', '32Gi') }),
    requests: object({ cpu: mostly(['4'], ['9']), memory: mostly(['4Gi'], ['17Gi']) }, ['cpu', 'memory']),
  },
  ['requests'],
);

const handler = {
  exec: fc.constant({ command: ['true'] }),
  httpGet: object({
    path: fc.constant('/healthz'),
    port: some<unknown>(80, 'http'),
    host: mostly([''], ['10.0.0.1']),
    scheme: some('HTTP', 'HTTPS'),
    httpHeaders: few(fc.constant({ name: 'X', value: 'y' })),
  }),
  tcpSocket: object({ port: some(80), host: mostly([''], ['localhost']) }),
};
const probe = object({
  ...handler,
  grpc: object({ port: some(5000), service: some('', 'svc') }),
  initialDelaySeconds: some(0, 5),
  timeoutSeconds: some(1),
  periodSeconds: some(10),
  successThreshold: some(1),
  failureThreshold: some(3),
  terminationGracePeriodSeconds: some(7),
});
const hook = object({ ...handler, sleep: fc.constant({ seconds: 2 }) });
const lifecycle = object({ postStart: hook, preStop: hook, stopSignal: some('SIGUSR1') });

const profile = object({
  type: mostly(['RuntimeDefault'], ['Unconfined', 'Localhost']),
  localhostProfile: mostly([''], ['p']),
});
const seLinux = object({
  level: fc.constant('s0:c1'),
  type: mostly(['', 'container_t'], ['spc_t']),
  user: mostly([''], ['root']),
});
const containerSecurity = object({
  allowPrivilegeEscalation: flag,
  privileged: mostly([false], [true]),
  capabilities: object({
    add: few(mostly(['NET_BIND_SERVICE', 'CHOWN', 'CAP_CHOWN'], ['SYS_ADMIN', 'SYS_PTRACE'])),
    drop: few(some('ALL', 'MKNOD')),
  }),
  procMount: mostly(['Default'], ['Unmasked']),
  readOnlyRootFilesystem: flag,
  runAsGroup: id,
  runAsNonRoot: flag,
  runAsUser: id,
  seLinuxOptions: seLinux,
  seccompProfile: profile,
  appArmorProfile: profile,
  windowsOptions: fc.constant({}),
});
const podSecurity = object({
  fsGroup: id,
  fsGroupChangePolicy: some('OnRootMismatch', 'Always'),
  runAsGroup: id,
  runAsNonRoot: flag,
  runAsUser: id,
  seLinuxChangePolicy: some('MountOption', 'Recursive'),
  seLinuxOptions: seLinux,
  seccompProfile: profile,
  appArmorProfile: profile,
  supplementalGroups: few(id),
  supplementalGroupsPolicy: some('Merge', 'Strict'),
  sysctls: few(
    fc.record({
      name: mostly(['kernel.shm_rmid_forced', 'net.ipv4.tcp_syncookies'], ['kernel.msgmax']),
      value: some('1'),
    }),
  ),
});

const keyRef = object({ name: some('conf', 'keys'), key: some('a'), optional: flag }, ['name', 'key']);
const env = fc.oneof(
  fc.record({ name: some('A', 'B'), value: some('', 'x', '$(A)') }),
  fc.record({
    name: some('C', 'D'),
    valueFrom: fc.oneof(
      fc.record({ configMapKeyRef: keyRef }),
      fc.record({ secretKeyRef: keyRef }),
      fc.record({
        fieldRef: object(
          {
            apiVersion: fc.constant('v1'),
            fieldPath: mostly(
              [
                'metadata.name',
                "metadata.labels['app']",
                'status.podIP',
                'status.podIPs',
                'status.hostIP',
                'spec.nodeName',
              ],
              ['spec.teleport'],
            ),
          },
          ['fieldPath'],
        ),
      }),
      fc.record({
        resourceFieldRef: object(
          { resource: some('limits.cpu', 'requests.memory', 'limits.hugepages-2Mi'), divisor: some('0', '1', '1m') },
          ['resource'],
        ),
      }),
      fc.record({
        fileKeyRef: object({ volumeName: some('scratch'), path: some('env'), key: some('K'), optional: flag }),
      }),
    ),
  }),
);
const envFrom = object({
  prefix: some('', 'APP_'),
  configMapRef: object({ name: some('conf'), optional: flag }, ['name']),
  secretRef: object({ name: some('keys'), optional: flag }, ['name']),
});

const mount = object(
  {
    name: some('scratch', 'conf', serviceAccountVolume.name),
    mountPath: some('/data', '/var/run/secrets/kubernetes.io/serviceaccount'),
    subPath: some('', 'a'),
    subPathExpr: some('$(A)'),
    readOnly: flag,
    recursiveReadOnly: some('Disabled', 'IfPossible', 'Enabled'),
    mountPropagation: mostly(['None', 'HostToContainer'], ['Bidirectional']),
  },
  ['name', 'mountPath'],
);

const containerFields = {
  image: some('busybox', 'registry.example/a@sha256:1'),
  imagePullPolicy: some('Always', 'IfNotPresent', 'Never'),
  command: few(some('sh')),
  args: few(some('-c')),
  workingDir: some('/w'),
  env: few(env),
  envFrom: few(envFrom),
  securityContext: containerSecurity,
  stdin: flag,
  stdinOnce: flag,
  tty: flag,
  terminationMessagePath: some('/dev/termination-log'),
  terminationMessagePolicy: some('File', 'FallbackToLogsOnError'),
  volumeMounts: few(mount),
  volumeDevices: mostly<unknown[]>([[]], [[{ name: 'd', devicePath: '/dev/x' }]]),
};
const container = (name: string) =>
  object(
    {
      ...containerFields,
      name: fc.constant(name),
      resources,
      resizePolicy: few(
        fc.record({ resourceName: some('cpu', 'memory'), restartPolicy: some('NotRequired', 'RestartContainer') }),
      ),
      restartPolicy: some('Always', 'OnFailure', 'Never'),
      restartPolicyRules: few(
        fc.record({
          action: some('Restart', 'RestartAllContainers'),
          exitCodes: fc.constant({ operator: 'In', values: [42] }),
        }),
      ),
      ports: few(
        object({
          name: some('http'),
          containerPort: some(80),
          protocol: some('TCP', 'UDP', 'SCTP'),
          hostPort: mostly([0], [80]),
          hostIP: some('', '127.0.0.1'),
        }),
      ),
      livenessProbe: probe,
      readinessProbe: probe,
      startupProbe: probe,
      lifecycle,
    },
    ['name'],
  ) as fc.Arbitrary<Container>;
const ephemeral = object(
  { ...containerFields, name: some('debug'), targetContainerName: some('main'), resources: fc.constant({}) },
  ['name'],
) as fc.Arbitrary<Container>;

const items = few(fc.record({ key: some('k'), path: some('p'), mode: some(256, 420) }));
const downward = few(
  fc.oneof(
    fc.record({ path: some('labels'), fieldRef: fc.record({ fieldPath: some('metadata.labels', 'metadata.uid') }) }),
    fc.record({
      path: some('cpu'),
      mode: some(256),
      resourceFieldRef: fc.record({
        containerName: some('main'),
        resource: mostly(['limits.cpu'], ['requests.teleport']),
      }),
    }),
  ),
);
const goodVolume = fc.oneof(
  fc.record({ emptyDir: object({ medium: mostly(['', 'Memory'], ['HugePages']), sizeLimit: quantity }) }),
  fc.record({
    configMap: object({ name: some('conf'), items, defaultMode: some(420), optional: flag }, ['name']),
  }),
  fc.record({
    secret: object({ secretName: some('keys'), items, defaultMode: some(420), optional: flag }, ['secretName']),
  }),
  fc.record({ downwardAPI: object({ items: downward, defaultMode: some(420) }) }),
  fc.record({ persistentVolumeClaim: object({ claimName: some('c'), readOnly: flag }, ['claimName']) }),
  fc.record({ ephemeral: fc.constant({ volumeClaimTemplate: { spec: { accessModes: ['ReadWriteOnce'] } } }) }),
  fc.record({ image: object({ reference: some('busybox'), pullPolicy: some('Always') }) }),
  fc.record({
    projected: object({
      defaultMode: some(420),
      sources: few(
        fc.oneof(
          fc.record({ configMap: object({ name: some('conf'), items, optional: flag }, ['name']) }),
          fc.record({ secret: object({ name: some('keys'), items, optional: flag }, ['name']) }),
          fc.record({ downwardAPI: object({ items: downward }) }),
        ),
      ),
    }),
  }),
  fc.constant({}),
);
const token = { serviceAccountToken: { audience: 'vault', path: 't' } };
const volumeSource = fc.oneof(
  { arbitrary: goodVolume as fc.Arbitrary<object>, weight: 20 },
  {
    arbitrary: some<object>(
      { hostPath: { path: '/' } },
      { csi: { driver: 'x' } },
      { projected: { sources: [token] } },
      { projected: { sources: [{ clusterTrustBundle: { path: 'x' } }] } },
    ),
    weight: 1,
  },
);

const spec = object(
  {
    containers: fc.tuple(container('main'), container('other')).map((list) => list),
    initContainers: fc.tuple(container('init')).map((list) => list),
    ephemeralContainers: few(ephemeral),
    volumes: few(fc.tuple(some('scratch', 'conf'), volumeSource).map(([name, source]) => ({ name, ...source }))).map(
      (volumes) => [...volumes, serviceAccountVolume],
    ),
    activeDeadlineSeconds: some(60),
    affinity: fc.constant({ nodeAffinity: {} }),
    automountServiceAccountToken: flag,
    dnsConfig: object({
      nameservers: few(some('1.1.1.1')),
      searches: few(some('example.com')),
      options: few(object({ name: some('ndots'), value: some('2') })),
    }),
    dnsPolicy: some('ClusterFirst', 'Default', 'None', 'ClusterFirstWithHostNet'),
    enableServiceLinks: flag,
    hostAliases: few(fc.constant({ ip: '1.2.3.4', hostnames: ['a'] })),
    hostIPC: mostly([false], [true]),
    hostNetwork: mostly([false], [true]),
    hostPID: mostly([false], [true]),
    hostUsers: flag,
    hostname: some('', 'db'),
    hostnameOverride: some('my.own'),
    imagePullSecrets: few(object({ name: some('', 'pull') })),
    nodeSelector: fc.constant({ a: 'b' }),
    os: fc.record({ name: mostly(['linux'], ['windows']) }),
    overhead: object({ cpu: mostly(['10m'], ['9']) }),
    preemptionPolicy: some('Never'),
    priority: some(0, 100),
    priorityClassName: some('high'),
    readinessGates: few(fc.constant({ conditionType: 'a/b' })),
    resourceClaims: mostly<unknown[]>([[]], [[{ name: 'x' }]]),
    resources: wholeResources,
    restartPolicy: some('Always', 'OnFailure', 'Never'),
    runtimeClassName: some('', 'kata'),
    schedulerName: some('mine'),
    schedulingGates: some<unknown[]>([]),
    schedulingGroup: fc.constant({ podGroupName: 'g' }),
    securityContext: podSecurity,
    serviceAccount: some('builder'),
    serviceAccountName: some('builder'),
    setHostnameAsFQDN: flag,
    shareProcessNamespace: flag,
    subdomain: some('', 'db'),
    terminationGracePeriodSeconds: some(0, 30),
    tolerations: few(fc.constant({ operator: 'Exists' })),
    topologySpreadConstraints: few(fc.constant({ maxSkew: 1 })),
    teleport: some<unknown>(null, false),
  },
  ['containers'],
) as fc.Arbitrary<PodSpec>;

const explain = (object: Pod, running: boolean): string | undefined => {
  try {
    admitPod(JSON.parse(JSON.stringify(object)), context, running);
    return undefined;
  } catch (error) {
    if (error instanceof Refusal) return `${error.message}: ${JSON.stringify(error.errors)}`;
    throw error;
  }
};

describe('what is carried is admitted', () => {
  test.each(['None', 'Bound'] as const)('whatever the pod, tokens %s', (serviceAccountTokens) => {
    let admitted = 0;
    fc.assert(
      fc.property(spec, (wanted) => {
        const translation = translatePod(pod(wanted), { ...view, serviceAccountTokens });
        if (translation.refused !== undefined) return;
        admitted++;
        expect(explain(translation.pod, true)).toBeUndefined();
        const { ephemeralContainers: _, ...atFirst } = translation.pod.spec;
        expect(explain({ ...translation.pod, spec: atFirst }, false)).toBeUndefined();
      }),
      { numRuns: 400, seed: 36 },
    );
    // Otherwise nothing was tried.
    expect(admitted).toBeGreaterThan(100);
  });

  /** One at a time: what is right alone has to be carried and admitted. */
  test.each(Object.keys(containerFields))('each value of a container’s %s that is carried', (field) => {
    fc.assert(
      fc.property((containerFields as Record<string, fc.Arbitrary<unknown>>)[field]!, (value) => {
        const translation = translatePod(pod({ containers: [{ name: 'main', [field]: value }] }), view);
        if (translation.refused === undefined) expect(explain(translation.pod, false)).toBeUndefined();
      }),
      { numRuns: 300, seed: 36 },
    );
  });

  test('each volume that is carried', () => {
    let carried = 0;
    fc.assert(
      fc.property(volumeSource, (source) => {
        const translation = translatePod(pod({ volumes: [{ name: 'v', ...source }] }), view);
        if (translation.refused !== undefined) return;
        carried++;
        expect(explain(translation.pod, false)).toBeUndefined();
      }),
      { numRuns: 500, seed: 36 },
    );
    expect(carried).toBeGreaterThan(100);
  });

  test('each field of the pod alone', () => {
    fc.assert(
      fc.property(spec, fc.nat(), (wanted, n) => {
        const fields = Object.keys(wanted).filter((field) => field !== 'containers');
        const field = fields[n % Math.max(1, fields.length)];
        if (field === undefined) return;
        const translation = translatePod(pod({ [field]: wanted[field] }), view);
        if (translation.refused === undefined) expect(explain(translation.pod, true)).toBeUndefined();
      }),
      { numRuns: 400, seed: 36 },
    );
  });
});

describe('what is carried and yet refused, since it is the provider’s to know', () => {
  const main = (more: object): Partial<PodSpec> => ({ containers: [{ name: 'main', ...more }] });
  test.each<[string, Partial<PodSpec>, RegExp]>([
    [
      'a variable that chooses devices',
      main({ env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }] }),
      /chooses devices/,
    ],
    [
      'a prefix that makes one',
      main({ envFrom: [{ prefix: 'NVIDIA_', configMapRef: { name: 'c' } }] }),
      /another prefix/,
    ],
    [
      'a mount that chooses devices',
      {
        ...main({ volumeMounts: [{ name: 'v', mountPath: '/var/run/nvidia-container-devices/all' }] }),
        volumes: [{ name: 'v', emptyDir: {} }],
      },
      /devices are chosen/,
    ],
    [
      'more than is sane: 65 containers',
      { containers: Array.from({ length: 65 }, (_, i) => ({ name: `c${i}` })) },
      /64 entries/,
    ],
    [
      'a request above the pod’s own limit',
      {
        ...main({ resources: { requests: { cpu: '3' } } }),
        resources: { limits: { cpu: '2' }, requests: { cpu: '2' } },
      },
      /more than the pod has/,
    ],
  ])('%s', (_, wanted, words) => {
    const translation = translatePod(pod(wanted), view);
    if (translation.refused !== undefined) throw new Error(translation.message);
    expect(explain(translation.pod, false)).toMatch(words);
  });
});

function pick<T extends object>(from: T, names: readonly string[]): Partial<T> {
  return Object.fromEntries(Object.entries(from).filter(([name]) => names.includes(name))) as Partial<T>;
}
