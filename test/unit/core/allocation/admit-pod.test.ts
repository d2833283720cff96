/** Which pods a tenant may run: each refusal is what its author reads. */
import { describe, expect, test } from 'vitest';
import { admitConfig } from '../../../../operator/core/allocation/admit-config.ts';
import { type AdmittedPod, admitPod } from '../../../../operator/core/allocation/admit-pod.ts';
import { Refusal } from '../../../../operator/core/allocation/refusal.ts';

const gib = 1024 ** 3;
const context = {
  namespace: 'gl-0',
  leaseId: 'abc',
  nodeName: 'node-a',
  room: { gpus: 2, cpuMillis: 8000, memoryBytes: 32 * gib, ephemeralBytes: 100 * gib, pods: 10 },
};
const pod = (spec: object = {}, container: object = {}, metadata: object = {}) => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name: 'train', ...metadata },
  spec: { containers: [{ name: 'main', image: 'busybox', ...container }], ...spec },
});
const refusal = (object: unknown): Refusal => {
  try {
    admitPod(object, context);
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error('it was admitted');
};
interface Seen {
  env?: { name: string; value?: string }[];
  resources: { requests: Record<string, string>; limits: Record<string, string> };
}
describe('a trusted tenant', () => {
  const admit = (object: unknown) => admitPod(object, { ...context, profile: 'trusted' });

  test('may use the network and files of the node', () => {
    const hostPath = { path: '/etc/hosts', type: 'FileOrCreate' };
    const { spec } = admit(
      pod({ hostNetwork: true, dnsPolicy: 'ClusterFirstWithHostNet', volumes: [{ name: 'h', hostPath }] }),
    );
    expect(spec).toMatchObject({
      hostNetwork: true,
      dnsPolicy: 'ClusterFirstWithHostNet',
      volumes: [{ name: 'h', hostPath }],
      affinity: { nodeAffinity: {} },
    });
  });

  test.each<[string, object]>([
    ['privileged containers', pod({}, { securityContext: { privileged: true } })],
    ['the processes of the node', pod({ hostPID: true })],
    ['its shared memory', pod({ hostIPC: true })],
    ['a port of the node', pod({}, { ports: [{ containerPort: 80, hostPort: 80 }] })],
    ['SYS_ADMIN', pod({}, { securityContext: { capabilities: { add: ['SYS_ADMIN'] } } })],
    ['a word for hostNetwork', pod({ hostNetwork: 'yes' })],
  ])('may have no more than that: not %s', (_, object) => {
    expect(() => admit(object)).toThrow(Refusal);
  });
});

const container = (admitted: AdmittedPod, index = 0): Seen => (admitted.spec.containers as Seen[])[index]!;

describe('refused, by field', () => {
  test.each<[string, object, string, RegExp]>([
    [
      'privileged',
      pod({}, { securityContext: { privileged: true } }),
      'spec.containers[0].securityContext.privileged',
      /no access to the host/,
    ],
    [
      'hostPath',
      pod({ volumes: [{ name: 'h', hostPath: { path: '/' } }] }),
      'spec.volumes[0].hostPath',
      /no access to the host/,
    ],
    ['hostNetwork', pod({ hostNetwork: true }), 'spec.hostNetwork', /refused/],
    ['hostPID', pod({ hostPID: true }), 'spec.hostPID', /refused/],
    ['hostIPC', pod({ hostIPC: true }), 'spec.hostIPC', /refused/],
    [
      'a host port',
      pod({}, { ports: [{ containerPort: 80, hostPort: 80 }] }),
      'spec.containers[0].ports[0].hostPort',
      /refused/,
    ],
    [
      'SYS_ADMIN',
      pod({}, { securityContext: { capabilities: { add: ['SYS_ADMIN'] } } }),
      'spec.containers[0].securityContext.capabilities.add[0]',
      /may not add/,
    ],
    [
      'ALL',
      pod({}, { securityContext: { capabilities: { add: ['ALL'] } } }),
      'spec.containers[0].securityContext.capabilities.add[0]',
      /may not add/,
    ],
    [
      'an unmasked /proc',
      pod({}, { securityContext: { procMount: 'Unmasked' } }),
      'spec.containers[0].securityContext.procMount',
      /Default/,
    ],
    [
      'no seccomp',
      pod({ securityContext: { seccompProfile: { type: 'Unconfined' } } }),
      'spec.securityContext.seccompProfile.type',
      /RuntimeDefault/,
    ],
    [
      'a sysctl of the kernel',
      pod({ securityContext: { sysctls: [{ name: 'kernel.msgmax', value: '1' }] } }),
      'spec.securityContext.sysctls[0].name',
      /sysctl/,
    ],
    ['a node of its choice', pod({ nodeName: 'node-b' }), 'spec.nodeName', /gateway’s to choose/],
    ['another namespace', pod({}, {}, { namespace: 'kube-system' }), 'metadata.namespace', /leave it out/],
    ['a generated name', pod({}, {}, { name: undefined, generateName: 'x-' }), 'metadata.name', /not generated/],
    [
      'a service account token',
      pod({ volumes: [{ name: 't', projected: { sources: [{ serviceAccountToken: { path: 'token' } }] } }] }),
      'spec.volumes[0].projected.sources[0].serviceAccountToken',
      /not given/,
    ],
    [
      'a claim with a path for a name',
      pod({ volumes: [{ name: 'd', persistentVolumeClaim: { claimName: '../d' } }] }),
      'spec.volumes[0].persistentVolumeClaim.claimName',
      /not a name/,
    ],
    [
      'a claim that the provider’s cluster would make',
      pod({ volumes: [{ name: 'd', ephemeral: { volumeClaimTemplate: { spec: {} } } }] }),
      'spec.volumes[0].ephemeral',
      /make one/,
    ],
    ['CSI', pod({ volumes: [{ name: 'd', csi: { driver: 'x' } }] }), 'spec.volumes[0].csi', /CSI/],
    [
      'NFS',
      pod({ volumes: [{ name: 'd', nfs: { server: '10.0.0.1', path: '/' } }] }),
      'spec.volumes[0].nfs',
      /there are emptyDir/,
    ],
    ['a resource claim', pod({ resourceClaims: [{ name: 'gpu' }] }), 'spec.resourceClaims', /not supported/],
    [
      'another vendor’s device',
      pod({}, { resources: { limits: { 'amd.com/gpu': '1' } } }),
      'spec.containers[0].resources.limits[amd.com/gpu]',
      /there are cpu, memory/,
    ],
    [
      'more GPUs than leased',
      pod({}, { resources: { limits: { 'nvidia.com/gpu': '3' } } }),
      'spec.containers[0].resources.limits[nvidia.com/gpu]',
      /more than the lease has \(2\)/,
    ],
    [
      'more memory than leased',
      pod({}, { resources: { requests: { memory: '64Gi' } } }),
      'spec.containers[0].resources.requests[memory]',
      /more than the lease has \(32Gi\)/,
    ],
    [
      'negative memory',
      pod({}, { resources: { requests: { memory: '-1' } } }),
      'spec.containers[0].resources.requests[memory]',
      /negative/,
    ],
    [
      'all devices by variable',
      pod({}, { env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }] }),
      'spec.containers[0].env[0].name',
      /remove the variable/,
    ],
    [
      'devices by a variable from a Secret',
      pod({}, { env: [{ name: 'NVIDIA_VISIBLE_DEVICES', valueFrom: { secretKeyRef: { name: 's', key: 'k' } } }] }),
      'spec.containers[0].env[0].name',
      /remove the variable/,
    ],
    [
      'devices by a prefix',
      pod({}, { envFrom: [{ prefix: 'NVIDIA_', configMapRef: { name: 'c' } }] }),
      'spec.containers[0].envFrom[0].prefix',
      /another prefix/,
    ],
    [
      'the driver’s display parts',
      pod({}, { env: [{ name: 'NVIDIA_DRIVER_CAPABILITIES', value: 'all' }] }),
      'spec.containers[0].env[0].name',
      /remove/,
    ],
    [
      'devices by mount',
      pod(
        { volumes: [{ name: 'e', emptyDir: {} }] },
        { volumeMounts: [{ name: 'e', mountPath: '/var/run/../run//nvidia-container-devices/all' }] },
      ),
      'spec.containers[0].volumeMounts[0].mountPath',
      /devices are chosen/,
    ],
    [
      'devices by CDI',
      pod({}, {}, { annotations: { 'cdi.k8s.io/x': 'nvidia.com/gpu=all' } }),
      'metadata.annotations[cdi.k8s.io/x]',
      /chooses devices/,
    ],
    [
      'mounts back to the host',
      pod(
        { volumes: [{ name: 'e', emptyDir: {} }] },
        { volumeMounts: [{ name: 'e', mountPath: '/d', mountPropagation: 'Bidirectional' }] },
      ),
      'spec.containers[0].volumeMounts[0].mountPropagation',
      /host/,
    ],
    [
      'a probe of another host',
      pod({}, { livenessProbe: { httpGet: { host: '169.254.169.254', port: 80 } } }),
      'spec.containers[0].livenessProbe.httpGet.host',
      /another host/,
    ],
    [
      'a hook to another host',
      pod({}, { lifecycle: { preStop: { tcpSocket: { host: '10.0.0.1', port: 22 } } } }),
      'spec.containers[0].lifecycle.preStop.tcpSocket.host',
      /another host/,
    ],
    ['a field that nobody knows', pod({ warpDrive: true }), 'spec.warpDrive', /not a field/],
    [
      'the same in an init container',
      pod({ initContainers: [{ name: 'i', image: 'x', securityContext: { privileged: true } }] }),
      'spec.initContainers[0].securityContext.privileged',
      /refused/,
    ],
    ['no containers', { metadata: { name: 'x' }, spec: {} }, 'spec.containers', /missing/],
    [
      'a Secret outside, by path',
      pod({ volumes: [{ name: 's', secret: { secretName: '../other' } }] }),
      'spec.volumes[0].secret.secretName',
      /not a name/,
    ],
  ])('%s', (_name, object, field, message) => {
    const { reason, errors, status } = refusal(object);
    expect({ reason, status }).toEqual({ reason: 'PodRefused', status: 422 });
    expect(errors![0]!.field).toBe(field);
    expect(errors![0]!.message).toMatch(message);
  });

  test('all that is wrong is told at once', () => {
    expect(refusal(pod({ hostPID: true, hostIPC: true, warpDrive: 1 })).errors).toHaveLength(3);
  });

  test.each([[null], [[]], ['pod'], [{ spec: {} }], [{ ...pod(), kind: 'Node' }]])('%j is no pod', (object) => {
    expect(refusal(object).status).toBe(400);
  });
});

describe('admitted', () => {
  test('on the leased node alone, without a token, under our labels', () => {
    const admitted = admitPod(
      pod(
        {
          serviceAccountName: 'admin',
          nodeSelector: { a: 'b' },
          tolerations: [{ operator: 'Exists' }],
          priorityClassName: 'system-node-critical',
          runtimeClassName: 'sysbox',
        },
        {},
        {
          labels: {
            app: 'x',
            'azure.workload.identity/use': 'true',
            'gpulease.dev/tenant': 'false',
            'gpulease.dev/pod-uid': 'u',
          },
          annotations: { 'gpulease.dev/pod-name': 'train', 'k8s.v1.cni.cncf.io/networks': 'host' },
          finalizers: ['x/y'],
          ownerReferences: [{ kind: 'Node' }],
        },
      ),
      context,
    );
    expect(admitted.metadata).toEqual({
      name: 'train',
      namespace: 'gl-0',
      labels: {
        'app.kubernetes.io/managed-by': 'gpulease',
        'gpulease.dev/lease-id': 'abc',
        'gpulease.dev/pod-uid': 'u',
        'gpulease.dev/tenant': 'true',
      },
      annotations: { 'gpulease.dev/pod-name': 'train' },
    });
    expect(admitted.spec).toMatchObject({
      serviceAccountName: 'default',
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      affinity: {
        nodeAffinity: {
          requiredDuringSchedulingIgnoredDuringExecution: {
            nodeSelectorTerms: [{ matchFields: [{ key: 'metadata.name', operator: 'In', values: ['node-a'] }] }],
          },
        },
      },
    });
    for (const field of ['nodeSelector', 'priorityClassName', 'runtimeClassName', 'nodeName']) {
      expect(admitted.spec).not.toHaveProperty(field);
    }
    expect((admitted.spec.tolerations as { key?: string }[]).map(({ key }) => key)).toEqual([
      'gpulease.dev/offered',
      'nvidia.com/gpu',
      'node.kubernetes.io/not-ready',
      'node.kubernetes.io/unreachable',
    ]);
  });

  test('requests stay; limits are capped at the lease, and set to it where there are none', () => {
    const { requests, limits } = container(
      admitPod(
        pod({}, { resources: { requests: { cpu: '500m' }, limits: { memory: '64Gi', 'ephemeral-storage': '1Gi' } } }),
        {
          ...context,
          room: { ...context.room, memoryBytes: 64 * gib },
        },
      ),
    ).resources;
    expect(requests).toEqual({ cpu: '500m', memory: '64Gi', 'ephemeral-storage': '1Gi' });
    expect(limits).toEqual({ cpu: '8', memory: '64Gi', 'ephemeral-storage': '1Gi' });
    const bare = container(admitPod(pod(), context)).resources;
    expect(bare).toEqual({
      requests: { cpu: '0', memory: '0', 'ephemeral-storage': '0' },
      limits: { cpu: '8', memory: '32Gi', 'ephemeral-storage': '100Gi' },
    });
  });

  test('a GPU is asked for by the name that the node has for the leased part of one', () => {
    const limits = { 'nvidia.com/gpu': '2' };
    const both = pod({ initContainers: [{ name: 'init', image: 'busybox' }] }, { resources: { limits } });
    const { containers, initContainers } = admitPod(both, { ...context, device: 'nvidia.com/mig-1g.10gb' })
      .spec as unknown as Record<string, Seen[]>;
    for (const amounts of Object.values(containers![0]!.resources)) {
      expect(amounts).toMatchObject({ 'nvidia.com/mig-1g.10gb': '2' });
      expect(amounts).not.toHaveProperty(['nvidia.com/gpu']);
    }
    expect(containers![0]!.env).toEqual([]);
    expect(initContainers![0]!.env).toEqual([{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'void' }]);
    const direct = { resources: { limits: { 'nvidia.com/mig-1g.10gb': '1' } } };
    expect(() => admitPod(pod({}, direct), { ...context, device: 'nvidia.com/mig-1g.10gb' })).toThrow(
      /is not a resource of a leased node/,
    );
  });

  test('each container without a GPU is shown none; those with one are left to the device plugin', () => {
    const admitted = admitPod(
      pod({
        initContainers: [{ name: 'init', image: 'x' }],
        containers: [
          {
            name: 'gpu',
            image: 'x',
            resources: { limits: { 'nvidia.com/gpu': '1' } },
            env: [{ name: 'NVIDIA_DRIVER_CAPABILITIES', value: 'compute,utility' }],
          },
          { name: 'side', image: 'x', env: [{ name: 'A', value: 'b' }] },
        ],
      }),
      context,
    );
    const hidden = { name: 'NVIDIA_VISIBLE_DEVICES', value: 'void' };
    expect((admitted.spec.initContainers as Seen[])[0]!.env).toEqual([hidden]);
    expect(container(admitted, 0).env).toEqual([{ name: 'NVIDIA_DRIVER_CAPABILITIES', value: 'compute,utility' }]);
    expect(container(admitted, 0).resources.requests['nvidia.com/gpu']).toBe('1');
    expect(container(admitted, 1).env).toEqual([{ name: 'A', value: 'b' }, hidden]);
  });

  test('what makes an ordinary program is carried', () => {
    const spec = {
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 5,
      hostname: 'train',
      securityContext: { runAsUser: 1000, fsGroup: 1000, seccompProfile: { type: 'RuntimeDefault' } },
      imagePullSecrets: [{ name: 'pull' }],
      volumes: [
        { name: 'scratch', emptyDir: { medium: 'Memory', sizeLimit: '1Gi' } },
        { name: 'conf', configMap: { name: 'conf', items: [{ key: 'a', path: 'a', mode: 420 }] } },
        {
          name: 'all',
          projected: {
            sources: [
              { secret: { name: 's' } },
              {
                downwardAPI: {
                  items: [
                    { path: 'n', fieldRef: { apiVersion: 'v1', fieldPath: "metadata.annotations['gpulease.dev/x']" } },
                  ],
                },
              },
            ],
          },
        },
      ],
    };
    const admitted = admitPod(
      pod(spec, {
        command: ['sh'],
        args: ['-c', 'true'],
        ports: [{ containerPort: 8080, name: 'http', protocol: 'TCP', hostPort: 0 }],
        env: [{ name: 'POD', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } }],
        envFrom: [{ prefix: 'APP_', secretRef: { name: 's', optional: true } }],
        volumeMounts: [{ name: 'scratch', mountPath: '/var/run/nvidia', subPath: 'a' }],
        readinessProbe: { httpGet: { path: '/', port: 'http' }, periodSeconds: 5 },
        securityContext: {
          capabilities: { drop: ['ALL'], add: ['NET_BIND_SERVICE'] },
          allowPrivilegeEscalation: false,
        },
      }),
      context,
    );
    expect(admitted.spec).toMatchObject({
      ...spec,
      volumes: [
        {},
        {},
        {
          projected: {
            sources: [
              {},
              { downwardAPI: { items: [{ fieldRef: { fieldPath: "metadata.annotations['gpulease.dev/x']" } }] } },
            ],
          },
        },
      ],
    });
    expect((admitted.spec.containers as object[])[0]).toMatchObject({
      command: ['sh'],
      readinessProbe: { httpGet: { path: '/', port: 'http' } },
      volumeMounts: [{ mountPath: '/var/run/nvidia', subPath: 'a' }],
    });
  });

  test('nothing in it is shared with the object that was given, and no prototype is reached', () => {
    const given = JSON.parse(
      '{"metadata":{"name":"x","annotations":{"gpulease.dev/a":"b"}},"spec":{"containers":[{"name":"c","image":"i","constructor":{}}]}}',
    ) as object;
    expect(refusal(given).errors![0]!.field).toBe('spec.containers[0].constructor');
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });
});

describe('ConfigMaps and Secrets', () => {
  const at = { namespace: 'gl-0', leaseId: 'abc' };
  test('carry data', () => {
    expect(
      admitConfig('Secret', { metadata: { name: 's' }, data: { a: 'Yg==' }, type: 'kubernetes.io/tls' }, at),
    ).toMatchObject({
      metadata: { name: 's', namespace: 'gl-0' },
      type: 'kubernetes.io/tls',
      data: { a: 'Yg==' },
    });
  });

  test.each<[string, 'ConfigMap' | 'Secret', object, string]>([
    [
      'a token of a service account',
      'Secret',
      {
        metadata: { name: 's', annotations: { 'kubernetes.io/service-account.name': 'tenant' } },
        type: 'kubernetes.io/service-account-token',
      },
      'type',
    ],
    [
      'a key that chooses devices',
      'ConfigMap',
      { metadata: { name: 'c' }, data: { NVIDIA_VISIBLE_DEVICES: 'all' } },
      'data[NVIDIA_VISIBLE_DEVICES]',
    ],
    [
      'the same in a Secret’s text',
      'Secret',
      { metadata: { name: 'c' }, stringData: { NVIDIA_VISIBLE_DEVICES: 'all' } },
      'stringData[NVIDIA_VISIBLE_DEVICES]',
    ],
    ['the cluster’s own ConfigMap', 'ConfigMap', { metadata: { name: 'kube-root-ca.crt' }, data: {} }, 'metadata.name'],
    ['another namespace', 'ConfigMap', { metadata: { name: 'c', namespace: 'default' } }, 'metadata.namespace'],
    ['an unknown field', 'ConfigMap', { metadata: { name: 'c' }, spec: {} }, 'spec'],
    ['a number as data', 'ConfigMap', { metadata: { name: 'c' }, data: { a: 1 } }, 'data[a]'],
  ])('%s is refused', (_name, kind, object, field) => {
    expect(() => admitConfig(kind, object, at)).toThrow(Refusal);
    try {
      admitConfig(kind, object, at);
    } catch (error) {
      expect((error as Refusal).errors![0]!.field).toBe(field);
    }
  });

  test('what was given is never told back for a Secret', () => {
    try {
      admitConfig('Secret', { metadata: { name: 's' }, data: { NVIDIA_VISIBLE_DEVICES: 'hunter2' } }, at);
    } catch (error) {
      expect(JSON.stringify((error as Refusal).errors)).not.toContain('hunter2');
    }
  });
});
