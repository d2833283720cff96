/**
 * Each kind of pod that Kubernetes' own specs for nodes make (v1.36.3, test/e2e/common, the 141 that are NodeConformance and
 * Conformance): as the API server stores it, translated, and admitted by the provider. Whether it then does what the spec
 * wants is for `npm run conformance`; here a pod that would be refused is found in a second.
 */
import { describe, expect, test } from 'vitest';
import { admitPod } from '../../../../operator/core/allocation/admit-pod.ts';
import type { Container, Pod, PodSpec } from '../../../../operator/core/node/pod.ts';
import { translatePod } from '../../../../operator/core/node/translate-pod.ts';
import { pod, serviceAccountVolume, view } from './builders.ts';

const gib = 1024 ** 3;
const context = {
  namespace: 'gl-0',
  leaseId: 'abc',
  nodeName: 'node-a',
  room: { gpus: 2, cpuMillis: 8000, memoryBytes: 16 * gib, ephemeralBytes: 20 * gib, pods: 20 },
};

const agnhost = 'registry.k8s.io/e2e-test-images/agnhost:2.63.0';
const busybox = 'registry.k8s.io/e2e-test-images/busybox:1.37.0-1';
const tokenMount = {
  name: serviceAccountVolume.name,
  mountPath: '/var/run/secrets/kubernetes.io/serviceaccount',
  readOnly: true,
};

/** With what the API server and its admission add to every pod. */
function stored(spec: Partial<PodSpec>): Pod {
  const complete = (container: Container): Container => ({
    image: busybox,
    imagePullPolicy: 'IfNotPresent',
    resources: {},
    terminationMessagePath: '/dev/termination-log',
    terminationMessagePolicy: 'File',
    ...container,
    volumeMounts: [...(container.volumeMounts ?? []), tokenMount],
  });
  return pod({
    dnsPolicy: 'ClusterFirst',
    enableServiceLinks: true,
    nodeSelector: { 'kubernetes.io/hostname': view.nodeName },
    preemptionPolicy: 'PreemptLowerPriority',
    priority: 0,
    schedulerName: 'default-scheduler',
    securityContext: {},
    serviceAccount: 'default',
    serviceAccountName: 'default',
    terminationGracePeriodSeconds: 30,
    tolerations: [
      { key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
      { key: 'node.kubernetes.io/unreachable', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
    ],
    restartPolicy: 'Never',
    ...spec,
    containers: spec.containers!.map(complete),
    ...(spec.initContainers && { initContainers: spec.initContainers.map(complete) }),
    volumes: [...(spec.volumes ?? []), serviceAccountVolume],
  });
}
const main = (more: object, spec: Partial<PodSpec> = {}): Partial<PodSpec> => ({
  ...spec,
  containers: [{ name: 'main', ...more }],
});
const volume = (source: object, mount: object = {}, spec: Partial<PodSpec> = {}): Partial<PodSpec> =>
  main(
    {
      image: agnhost,
      args: ['mounttest'],
      volumeMounts: [{ name: 'v', mountPath: '/etc/v', readOnly: true, ...mount }],
    },
    { ...spec, volumes: [{ name: 'v', ...source }] },
  );
const nonRoot = { securityContext: { runAsUser: 1000, fsGroup: 1001 } };
const httpProbe = {
  httpGet: { path: '/healthz', port: 8080, scheme: 'HTTP' },
  initialDelaySeconds: 15,
  failureThreshold: 1,
};
const sidecar = {
  name: 'container-redirect',
  image: agnhost,
  args: ['netexec', '--udp-port', '-1'],
  restartPolicy: 'Always',
  startupProbe: { httpGet: { path: '/echo?msg=startup', port: 8080, scheme: 'HTTP' } },
};
const downward = (item: object) => ({ items: [{ path: 'f', ...item }] });
const field = (fieldPath: string) => ({ fieldRef: { apiVersion: 'v1', fieldPath } });
const resource = (name: string) => ({ resourceFieldRef: { containerName: 'main', resource: name, divisor: '0' } });
const both = (source: object): [object, object][] => {
  const [[kind, body]] = Object.entries(source) as [[string, Record<string, unknown>]];
  const { secretName, defaultMode, ...rest } = body;
  const projection = secretName === undefined ? rest : { name: secretName, ...rest };
  return [
    [source, {}],
    [{ projected: { sources: [{ [kind]: projection }], ...(defaultMode !== undefined && { defaultMode }) } }, {}],
  ];
};

const specs: [string, Partial<PodSpec>[]][] = [
  [
    'Networking: intra-pod http and udp',
    [
      main({
        image: agnhost,
        args: ['netexec', '--http-port=8083', '--udp-port=8081'],
        ports: [
          { name: 'http', containerPort: 8083, protocol: 'TCP' },
          { name: 'udp', containerPort: 8081, protocol: 'UDP' },
        ],
        livenessProbe: { ...httpProbe, httpGet: { path: '/healthz', port: 8083, scheme: 'HTTP' } },
        readinessProbe: httpProbe,
      }),
      main({ image: agnhost, args: ['netexec'], securityContext: { runAsUser: 0 } }),
    ],
  ],
  [
    'ConfigMap and Secrets: by variable and as the environment',
    [
      main({ env: [{ name: 'D', valueFrom: { configMapKeyRef: { name: 'c', key: 'data-1' } } }] }),
      main({ envFrom: [{ configMapRef: { name: 'c' } }, { prefix: 'p-', configMapRef: { name: 'c' } }] }),
      main({ env: [{ name: 'D', valueFrom: { secretKeyRef: { name: 's', key: 'data-1' } } }] }),
      main({ envFrom: [{ secretRef: { name: 's' } }, { prefix: 'p-', secretRef: { name: 's' } }] }),
    ],
  ],
  [
    'Container Lifecycle Hook: exec and http, after start and before stop, with a sidecar',
    (['postStart', 'preStop'] as const).flatMap((hook) => [
      { ...main({ lifecycle: { [hook]: { exec: { command: ['sh', '-c', 'curl x'] } } } }), initContainers: [sidecar] },
      {
        ...main({ lifecycle: { [hook]: { httpGet: { path: '/dial?host=10.1.2.3', port: 8080, scheme: 'HTTP' } } } }),
        initContainers: [sidecar],
      },
    ]),
  ],
  [
    'Container Runtime: termination messages, and what becomes of a container that exits',
    [
      main({ terminationMessagePolicy: 'FallbackToLogsOnError' }),
      main({ terminationMessagePath: '/dev/termination-custom-log', securityContext: { runAsUser: 1000 } }),
      ...['Always', 'OnFailure', 'Never'].map((restartPolicy) =>
        volume({ emptyDir: { medium: 'Memory' } }, { readOnly: false }, { restartPolicy }),
      ),
    ],
  ],
  [
    'Containers: command, arguments, both, neither',
    [
      main({ image: agnhost }),
      main({ image: agnhost, args: ['entrypoint-tester', 'override'] }),
      main({ image: agnhost, command: ['/agnhost-2'] }),
      main({ image: agnhost, command: ['/agnhost-2'], args: ['entrypoint-tester'] }),
    ],
  ],
  [
    'Downward API: every variable',
    [
      main({
        env: [
          ...[
            'metadata.name',
            'metadata.namespace',
            'metadata.uid',
            'status.podIP',
            'status.hostIP',
            'status.hostIPs',
            'spec.nodeName',
          ].map((path, i) => ({ name: `F${i}`, valueFrom: field(path) })),
          ...['limits.cpu', 'limits.memory', 'requests.cpu', 'requests.memory'].map((name, i) => ({
            name: `R${i}`,
            valueFrom: { resourceFieldRef: { resource: name, divisor: '0' } },
          })),
        ],
        resources: { limits: { cpu: '1250m', memory: '64Mi' }, requests: { cpu: '250m', memory: '32Mi' } },
      }),
    ],
  ],
  [
    'Ephemeral Containers: one, then another',
    [
      {
        ...main({ command: ['/bin/sleep'], args: ['10000'] }),
        ephemeralContainers: ['debugger', 'debugger2'].map((name) => ({
          name,
          image: busybox,
          command: ['/bin/sh', '-c', 'while true; do echo polo; sleep 2; done'],
          stdin: true,
          tty: true,
          resources: {},
          terminationMessagePath: '/dev/termination-log',
          terminationMessagePolicy: 'File',
          imagePullPolicy: 'IfNotPresent',
        })),
      },
    ],
  ],
  [
    'InitContainer: that end, that fail, under each restart policy',
    ['Always', 'Never'].map((restartPolicy) => ({
      ...main({ resources: { limits: { cpu: '100m' }, requests: { cpu: '100m' } } }, { restartPolicy }),
      initContainers: [
        { name: 'init1', command: ['/bin/true'] },
        { name: 'init2', command: ['/bin/false'] },
      ],
    })),
  ],
  [
    'Kubelet: logs, failures, a read-only root, host aliases',
    [
      main({ command: ['/bin/false'] }),
      main({ securityContext: { readOnlyRootFilesystem: true } }),
      main({ image: agnhost }, { hostAliases: [{ ip: '123.45.67.89', hostnames: ['foo', 'bar'] }] }),
    ],
  ],
  ['Pods: a deadline, labels, logs and commands', [main({ args: ['pause'] }, { activeDeadlineSeconds: 30 })]],
  [
    'Probing container: http, exec, tcp and grpc; liveness and readiness',
    [
      main({ livenessProbe: httpProbe }),
      main({
        livenessProbe: { exec: { command: ['cat', '/tmp/health'] }, initialDelaySeconds: 15, timeoutSeconds: 5 },
      }),
      main({ livenessProbe: { tcpSocket: { port: 8080 }, initialDelaySeconds: 15 } }),
      main({ livenessProbe: { grpc: { port: 5000, service: '' }, initialDelaySeconds: 5 } }),
      main({ readinessProbe: httpProbe }),
      main({ readinessProbe: { exec: { command: ['/bin/false'] }, initialDelaySeconds: 60 } }),
    ],
  ],
  [
    'RuntimeClass: with and without overhead',
    [
      main({}, { runtimeClassName: 'e2e-preconfigured-handler' }),
      main({}, { runtimeClassName: 'e2e-preconfigured-handler', overhead: { cpu: '10m', memory: '1Mi' } }),
    ],
  ],
  [
    'Security Context: user, privileged false, a writable root, no escalation',
    [
      main({ securityContext: { runAsUser: 65_534 } }),
      main({ securityContext: { privileged: false } }),
      main({ securityContext: { readOnlyRootFilesystem: false, runAsUser: 0 } }),
      main({ securityContext: { allowPrivilegeEscalation: false, runAsUser: 1000 } }),
    ],
  ],
  [
    'Sysctls: a safe one',
    [main({}, { securityContext: { sysctls: [{ name: 'kernel.shm_rmid_forced', value: '1' }] } })],
  ],
  [
    'Variable Expansion: in variables, command and arguments',
    [
      main({
        command: ['sh', '-c', 'TEST_VAR=wrong echo "$(TEST_VAR)"'],
        args: ['$(TEST_VAR)'],
        env: [
          { name: 'TEST_VAR', value: 'test-value' },
          { name: 'FOOBAR', value: '$(TEST_VAR);;$(TEST_VAR)' },
        ],
      }),
    ],
  ],
  [
    'ConfigMap and Secrets volumes, plain and projected: modes, items, users, optional ones, several at once',
    [
      { configMap: { name: 'c', defaultMode: 420 } },
      { configMap: { name: 'c', defaultMode: 256 } },
      { configMap: { name: 'c', items: [{ key: 'data-2', path: 'path/to/data-2', mode: 256 }] } },
      { configMap: { name: 'c', optional: true } },
      { secret: { secretName: 's', defaultMode: 420 } },
      { secret: { secretName: 's', defaultMode: 288 } },
      { secret: { secretName: 's', items: [{ key: 'data-1', path: 'new-path-data-1', mode: 256 }] } },
      { secret: { secretName: 's', optional: true } },
    ]
      .flatMap(both)
      .flatMap(([source]) => [volume(source), volume(source, {}, nonRoot)]),
  ],
  [
    'Downward API volumes, plain and projected',
    [
      field('metadata.name'),
      field('metadata.labels'),
      field('metadata.annotations'),
      { ...field('metadata.name'), mode: 256 },
      resource('limits.cpu'),
      resource('limits.memory'),
      resource('requests.cpu'),
      resource('requests.memory'),
    ].flatMap((item) =>
      both({ downwardAPI: { ...downward(item), defaultMode: 256 } }).map(([source]) => volume(source)),
    ),
  ],
  [
    'EmptyDir volumes: default and memory, as root and not',
    [{ emptyDir: {} }, { emptyDir: { medium: 'Memory' } }].flatMap((source) => [
      volume(source, { readOnly: false }),
      main(
        {
          image: agnhost,
          volumeMounts: [{ name: 'v', mountPath: '/test-volume' }],
          securityContext: { runAsUser: 1001 },
        },
        { volumes: [{ name: 'v', ...source }] },
      ),
    ]),
  ],
  [
    'Projected combined: Secret, ConfigMap and downward API in one place',
    [
      volume({
        projected: {
          defaultMode: 420,
          sources: [
            { downwardAPI: downward(field('metadata.name')) },
            { secret: { name: 's' } },
            { configMap: { name: 'c' } },
          ],
        },
      }),
    ],
  ],
];

describe.each(['None', 'Bound'] as const)('with tokens %s', (serviceAccountTokens) => {
  test.each(specs)('%s', (_, pods) => {
    expect(pods.length).toBeGreaterThan(0);
    for (const spec of pods) {
      const given = stored(spec);
      const translation = translatePod(given, { ...view, serviceAccountTokens });
      if (translation.refused !== undefined) throw new Error(translation.message);
      expect(translation.withheld).toEqual([]);
      const sent = JSON.parse(JSON.stringify(translation.pod)) as Pod;
      const { ephemeralContainers, ...atFirst } = sent.spec;
      expect(() => admitPod({ ...sent, spec: atFirst }, context)).not.toThrow();
      if (ephemeralContainers) expect(() => admitPod(sent, context, true)).not.toThrow();
    }
  });
});

test.each<[string, Partial<PodSpec>]>([
  ['node-pod communication', { ...main({ image: agnhost }), hostNetwork: true, dnsPolicy: 'ClusterFirstWithHostNet' }],
  ['KubeletManagedEtcHosts, of the host', { ...main({ image: agnhost }), hostNetwork: true }],
  ['KubeletManagedEtcHosts, beside it', volume({ hostPath: { path: '/etc/hosts', type: '' } })],
])('three specs are of the host, and refused by design: %s', (_, spec) => {
  expect(translatePod(stored(spec), view)).toMatchObject({ refused: 'HostAccessRefused' });
});
