import { describe, expect, test } from 'vitest';
import { remoteObjectName, remotePodName } from '../../../../operator/core/node/names.ts';
import type { EnvVar, Pod, PodSpec } from '../../../../operator/core/node/pod.ts';
import { serviceLinksName, serviceLinksOf } from '../../../../operator/core/node/service-links.ts';
import { tokenSecretName } from '../../../../operator/core/node/token-wish.ts';
import { downwardAnnotation, translatePod } from '../../../../operator/core/node/translate-pod.ts';
import { pod, serviceAccountVolume, view } from './builders.ts';

function carried(given: Pod) {
  const translation = translatePod(given, view);
  if (translation.refused !== undefined) throw new Error(`${translation.refused}: ${translation.message}`);
  return translation;
}
const env = (variables: EnvVar[], metadata: Partial<Pod['metadata']> = {}) =>
  carried(pod({ containers: [{ name: 'main', env: variables }] }, metadata)).pod.spec.containers[0]!.env;
/** Before everything that the container itself sets. */
const services = { configMapRef: { name: serviceLinksName(serviceLinksOf('team-a', true)), optional: true } };
const field = (fieldPath: string): EnvVar[] => [{ name: 'X', valueFrom: { fieldRef: { fieldPath } } }];

describe('a carried pod', () => {
  test('has a name of its own, and says whose it is', () => {
    const { metadata } = carried(pod()).pod;
    expect(metadata.name).toBe(remotePodName('web-0', '3f1c'));
    expect(metadata.namespace).toBeUndefined();
    expect(metadata.annotations).toMatchObject({
      'gpulease.dev/pod-namespace': 'team-a',
      'gpulease.dev/pod-name': 'web-0',
      'gpulease.dev/pod-uid': '3f1c',
    });
  });

  test('leaves labels and annotations behind', () => {
    const { metadata } = carried(pod({}, { labels: { team: 'secret-project' }, annotations: { note: 'x' } })).pod;
    expect(JSON.stringify(metadata)).not.toContain('secret-project');
    expect(Object.keys(metadata.labels ?? {})).toEqual(['app.kubernetes.io/managed-by']);
  });

  test('leaves behind what placed it', () => {
    const { spec } = carried(
      pod({
        schedulerName: 'mine',
        affinity: { nodeAffinity: {} },
        nodeSelector: { a: 'b' },
        tolerations: [{ operator: 'Exists' }],
        priority: 100,
        priorityClassName: 'high',
        preemptionPolicy: 'Never',
        topologySpreadConstraints: [{}],
        readinessGates: [{ conditionType: 'x/y' }],
        serviceAccountName: 'builder',
        serviceAccount: 'builder',
      }),
    ).pod;
    expect(Object.keys(spec).sort()).toEqual([
      'automountServiceAccountToken',
      'containers',
      'enableServiceLinks',
      'hostname',
      'restartPolicy',
    ]);
  });

  test('keeps what makes its containers what they are', () => {
    const main = {
      name: 'main',
      image: 'a',
      command: ['x'],
      args: ['y'],
      workingDir: '/w',
      livenessProbe: { httpGet: { port: 80 } },
      readinessProbe: { exec: { command: ['r'] } },
      startupProbe: { tcpSocket: { port: 1 } },
      lifecycle: { preStop: { exec: { command: ['s'] } } },
      resources: { limits: { 'nvidia.com/gpu': 1, cpu: '2' }, requests: { cpu: '1' } },
      securityContext: { runAsUser: 7, capabilities: { drop: ['ALL'], add: ['NET_BIND_SERVICE'] } },
      ports: [{ containerPort: 80, name: 'http', protocol: 'TCP' }],
      terminationMessagePath: '/m',
      terminationMessagePolicy: 'File',
      imagePullPolicy: 'Always',
      stdin: true,
      tty: true,
    };
    const init = { name: 'init', image: 'b', restartPolicy: 'Always' };
    const whole: Partial<PodSpec> = {
      terminationGracePeriodSeconds: 5,
      activeDeadlineSeconds: 60,
      restartPolicy: 'OnFailure',
      dnsPolicy: 'ClusterFirst',
      dnsConfig: { options: [{ name: 'ndots', value: '1' }] },
      hostAliases: [{ ip: '1.2.3.4', hostnames: ['x'] }],
      securityContext: { fsGroup: 1 },
      shareProcessNamespace: true,
    };
    const { spec } = carried(pod({ ...whole, containers: [main], initContainers: [init] })).pod;
    expect(spec.containers[0]).toEqual({ ...main, envFrom: [services] });
    expect(spec.initContainers).toEqual([{ ...init, envFrom: [services] }]);
    expect(spec).toMatchObject(whole);
  });

  test.each([
    ['web-0', undefined, 'web-0'],
    ['a.b.c', undefined, 'a-b-c'],
    [`${'n'.repeat(62)}-${'m'.repeat(20)}`, undefined, 'n'.repeat(62)],
    ['web-0', 'db', 'db'],
  ])('named %s, with hostname %s, is called %s inside', (name, hostname, expected) => {
    expect(carried(pod({ hostname }, { name })).pod.spec.hostname).toBe(expected);
  });

  test('is the same for the same pod, and marked when it changes', () => {
    const hash = (given: Pod) => carried(given).pod.metadata.annotations?.['gpulease.dev/carried'];
    expect(hash(pod())).toBe(hash(pod()));
    expect(hash(pod())).not.toBe(hash(pod({ containers: [{ name: 'main', image: 'other' }] })));
  });
});

describe('in env a pod sees its own', () => {
  test.each([
    ['metadata.name', 'web-0'],
    ['metadata.namespace', 'team-a'],
    ['metadata.uid', '3f1c'],
    ['spec.nodeName', view.nodeName],
    ['spec.serviceAccountName', 'default'],
    ['status.hostIP', view.nodeAddress],
    ["metadata.labels['app.kubernetes.io/name']", 'shop'],
    ["metadata.annotations['note']", 'n'],
    ["metadata.labels['none']", ''],
  ])('%s', (path, value) => {
    const metadata = { labels: { 'app.kubernetes.io/name': 'shop' }, annotations: { note: 'n' } };
    expect(env(field(path), metadata)).toEqual([{ name: 'X', value }]);
  });

  test('address as the provider gives it, since servers bind to it', () => {
    expect(env(field('status.podIP'))).toEqual(field('status.podIP'));
  });

  test('annotation unexpanded, whatever it holds', () => {
    expect(env(field("metadata.annotations['a']"), { annotations: { a: '$(HOME) $5 $$' } })).toEqual([
      { name: 'X', value: '$$(HOME) $$5 $$$$' },
    ]);
  });

  test.each([
    ['limits.cpu', undefined, '2'],
    ['limits.cpu', '1m', '1500'],
    ['requests.cpu', '1m', '500'],
    ['limits.memory', '1Mi', String(16 * 1024)],
    ['limits.memory', undefined, String(16 * 2 ** 30)],
    ['requests.memory', undefined, '0'],
    ['limits.nvidia.com/gpu', undefined, '1'],
  ])('%s in units of %s', (resource, divisor, value) => {
    const container = {
      name: 'main',
      resources: { limits: { cpu: '1500m', 'nvidia.com/gpu': 1 }, requests: { cpu: '500m' } },
      env: [{ name: 'X', valueFrom: { resourceFieldRef: { resource, divisor } } }],
    };
    expect(carried(pod({ containers: [container] })).pod.spec.containers[0]!.env).toEqual([{ name: 'X', value }]);
  });

  test('values and order of plain variables', () => {
    const plain = [
      { name: 'A', value: '1' },
      { name: 'B', value: '$(A)' },
      { name: 'A', value: '2' },
    ];
    expect(env(plain)).toEqual(plain);
  });
});

describe('references', () => {
  test('are renamed and listed, optional only when nobody needs them', () => {
    const {
      pod: remote,
      configMaps,
      secrets,
    } = carried(
      pod({
        containers: [
          {
            name: 'main',
            env: [
              { name: 'A', valueFrom: { configMapKeyRef: { name: 'conf', key: 'a', optional: true } } },
              { name: 'B', valueFrom: { secretKeyRef: { name: 'db', key: 'b' } } },
            ],
            envFrom: [
              { prefix: 'P_', configMapRef: { name: 'conf' } },
              { secretRef: { name: 'more', optional: true } },
            ],
          },
        ],
        volumes: [
          { name: 'v', configMap: { name: 'files', items: [{ key: 'k', path: 'p', mode: 256 }], defaultMode: 420 } },
          { name: 's', secret: { secretName: 'keys', optional: true } },
          {
            name: 'p',
            projected: {
              defaultMode: 420,
              sources: [
                { configMap: { name: 'files' } },
                { secret: { name: 'keys', items: [{ key: 'k', path: 'x' }] } },
              ],
            },
          },
        ],
        imagePullSecrets: [{ name: 'registry' }],
      }),
    );
    expect(configMaps).toEqual([
      { name: 'files', optional: false },
      { name: 'conf', optional: false },
    ]);
    expect(secrets).toEqual([
      { name: 'keys', optional: false },
      { name: 'db', optional: false },
      { name: 'more', optional: true },
      { name: 'registry', optional: true },
    ]);
    const secret = (name: string) => remoteObjectName('Secret', 'team-a', name);
    const configMap = (name: string) => remoteObjectName('ConfigMap', 'team-a', name);
    expect(remote.spec.containers[0]).toMatchObject({
      env: [
        { valueFrom: { configMapKeyRef: { name: configMap('conf'), key: 'a', optional: true } } },
        { valueFrom: { secretKeyRef: { name: secret('db'), key: 'b' } } },
      ],
      envFrom: [
        services,
        { prefix: 'P_', configMapRef: { name: configMap('conf') } },
        { secretRef: { name: secret('more'), optional: true } },
      ],
    });
    expect(remote.spec.volumes).toEqual([
      {
        name: 'v',
        configMap: { name: configMap('files'), items: [{ key: 'k', path: 'p', mode: 256 }], defaultMode: 420 },
      },
      { name: 's', secret: { secretName: secret('keys'), optional: true } },
      {
        name: 'p',
        projected: {
          defaultMode: 420,
          sources: [
            { configMap: { name: configMap('files') } },
            { secret: { name: secret('keys'), items: [{ key: 'k', path: 'x' }] } },
          ],
        },
      },
    ]);
    expect(remote.spec.imagePullSecrets).toEqual([{ name: secret('registry') }]);
  });

  test('the token that Kubernetes mounts into every pod stays at home, with its mounts', () => {
    const mounts = [
      { name: serviceAccountVolume.name, mountPath: '/var/run/secrets/kubernetes.io/serviceaccount' },
      { name: 'tmp', mountPath: '/tmp' },
    ];
    const { pod: remote, configMaps } = carried(
      pod({
        volumes: [serviceAccountVolume, { name: 'tmp', emptyDir: { medium: 'Memory' } }],
        containers: [{ name: 'main', volumeMounts: mounts }],
        initContainers: [{ name: 'i', volumeMounts: [mounts[0]!] }],
      }),
    );
    expect(remote.spec.volumes).toEqual([{ name: 'tmp', emptyDir: { medium: 'Memory' } }]);
    expect(remote.spec.containers[0]!.volumeMounts).toEqual([mounts[1]]);
    expect(remote.spec.initContainers![0]!.volumeMounts).toBeUndefined();
    expect(configMaps).toEqual([]);
  });

  test('files of the downward API show the consumer’s values, through annotations of ours', () => {
    const { pod: remote } = carried(
      pod(
        {
          volumes: [
            {
              name: 'd',
              downwardAPI: {
                items: [
                  { path: 'labels', fieldRef: { fieldPath: 'metadata.labels' } },
                  { path: 'name', mode: 256, fieldRef: { fieldPath: 'metadata.name' } },
                  { path: 'cpu', resourceFieldRef: { containerName: 'main', resource: 'limits.cpu' } },
                  { path: 'ip', fieldRef: { fieldPath: 'status.podIP' } },
                ],
              },
            },
          ],
        },
        { labels: { b: '2', a: 'say "hi"\n\u00a0' } },
      ),
    );
    const key = downwardAnnotation('metadata.labels');
    expect(remote.metadata.annotations?.[key]).toBe('a="say \\"hi\\"\\n\\u00a0"\nb="2"');
    const items = remote.spec.volumes![0]!.downwardAPI!.items!;
    expect(items[0]).toEqual({
      path: 'labels',
      fieldRef: { apiVersion: 'v1', fieldPath: `metadata.annotations['${key}']` },
    });
    expect(items[1]).toMatchObject({ path: 'name', mode: 256 });
    expect(remote.metadata.annotations?.[downwardAnnotation('metadata.name')]).toBe('web-0');
    expect(remote.metadata.annotations?.[downwardAnnotation('main/limits.cpu/1')]).toBe('8');
    expect(items[3]).toEqual({ path: 'ip', fieldRef: { fieldPath: 'status.podIP' } });
  });
});

describe('where the provider gives access to its host', () => {
  const trusted = { ...view, hostAccess: true };
  const hostPath = { path: '/etc/hosts', type: 'FileOrCreate' };

  test('the host’s network and files are asked for', () => {
    const wanted = pod({
      hostNetwork: true,
      volumes: [{ name: 'h', hostPath }],
      // As the API server completes a pod with hostNetwork.
      containers: [{ name: 'main', image: 'busybox', ports: [{ containerPort: 80, hostPort: 80 }] }],
    });
    expect(translatePod(wanted, trusted)).toMatchObject({
      pod: {
        spec: {
          hostNetwork: true,
          volumes: [{ name: 'h', hostPath }],
          containers: [{ ports: [{ containerPort: 80 }] }],
        },
      },
    });
  });

  test.each<[string, Partial<PodSpec>]>([
    ['host PIDs', { hostPID: true }],
    ['host IPC', { hostIPC: true }],
    [
      'a host port without the host’s network',
      { containers: [{ name: 'main', ports: [{ containerPort: 80, hostPort: 80 }] }] },
    ],
  ])('a pod is still refused with %s', (_, spec) => {
    expect(translatePod(pod(spec), trusted)).toMatchObject({ refused: 'HostAccessRefused' });
  });
});

describe('a pod is refused at once', () => {
  const container = (more: object): Partial<PodSpec> => ({ containers: [{ name: 'main', ...more }] });
  const volume = (more: object): Partial<PodSpec> => ({ volumes: [{ name: 'v', ...more }] });
  test.each<[string, Partial<PodSpec>, string, RegExp]>([
    ['with host network', { hostNetwork: true }, 'HostAccessRefused', /^spec\.hostNetwork/],
    ['with host PIDs', { hostPID: true }, 'HostAccessRefused', /^spec\.hostPID/],
    ['with host IPC', { hostIPC: true }, 'HostAccessRefused', /^spec\.hostIPC/],
    [
      'with a host port',
      container({ ports: [{ containerPort: 1, hostPort: 80 }] }),
      'HostAccessRefused',
      /ports\[0\]\.hostPort/,
    ],
    ['with a host path', volume({ hostPath: { path: '/' } }), 'HostAccessRefused', /^spec\.volumes\[0\]\.hostPath/],
    ['privileged', container({ securityContext: { privileged: true } }), 'PrivilegedRefused', /privileged/],
    [
      'with SYS_ADMIN',
      container({ securityContext: { capabilities: { add: ['CHOWN', 'SYS_ADMIN'] } } }),
      'PrivilegedRefused',
      /SYS_ADMIN/,
    ],
    [
      'with an unmasked /proc',
      container({ securityContext: { procMount: 'Unmasked' } }),
      'PrivilegedRefused',
      /procMount/,
    ],
    [
      'with a claim',
      volume({ persistentVolumeClaim: { claimName: 'data' } }),
      'VolumeNotSupported',
      /persistentVolumeClaim/,
    ],
    ['with a CSI volume', volume({ csi: { driver: 'x' } }), 'VolumeNotSupported', /csi/],
    [
      'with a token of its own',
      volume({ projected: { sources: [{ serviceAccountToken: { path: 't' } }] } }),
      'ServiceAccountTokenNotCarried',
      /sources\[0\]/,
    ],
    [
      'with more GPUs than leased',
      container({ resources: { limits: { 'nvidia.com/gpu': 3 } } }),
      'LeaseExceeded',
      /asks for 3 nvidia\.com\/gpu, the lease has 2/,
    ],
    [
      'with more memory than leased',
      container({ resources: { requests: { memory: '17Gi' } } }),
      'LeaseExceeded',
      /memory/,
    ],
    [
      'with another vendor’s GPU',
      container({ resources: { limits: { 'amd.com/gpu': 1 } } }),
      'LeaseExceeded',
      /the lease has 0/,
    ],
    ['with device claims', { resourceClaims: [{ name: 'x' }] }, 'FieldNotSupported', /^spec\.resourceClaims/],
    ['with a field nobody thought of', { teleport: true }, 'FieldNotSupported', /^spec\.teleport/],
    [
      'with such a field in a container',
      container({ teleport: {} }),
      'FieldNotSupported',
      /^spec\.containers\[0\]\.teleport/,
    ],
    [
      'with an unknown field reference',
      container({ env: field('spec.teleport') }),
      'FieldNotSupported',
      /spec\.teleport/,
    ],
    [
      'with a quantity that is none',
      container({ resources: { limits: { cpu: 'many' } } }),
      'FieldNotSupported',
      /many/,
    ],
  ])('%s', (_, spec, reason, message) => {
    const translation = translatePod(pod(spec), view);
    expect(translation.refused).toBe(reason);
    if (translation.refused !== undefined) expect(translation.message).toMatch(message);
  });

  test('counting sidecars and init containers as the scheduler does', () => {
    const gpu = (n: number) => ({ resources: { limits: { 'nvidia.com/gpu': n } } });
    const main = { name: 'main', ...gpu(1) };
    const fits = pod({ containers: [main], initContainers: [{ name: 'i', ...gpu(2) }] });
    expect(translatePod(fits, view).refused).toBeUndefined();
    const sidecar = { name: 's', restartPolicy: 'Always', ...gpu(1) };
    expect(translatePod(pod({ containers: [main], initContainers: [sidecar] }), view).refused).toBeUndefined();
    const both = pod({ containers: [main], initContainers: [sidecar, { name: 'i', ...gpu(2) }] });
    expect(translatePod(both, view).refused).toBe('LeaseExceeded');
  });
});

describe('inside, a pod is called', () => {
  test.each<[string, string, Partial<PodSpec>, object]>([
    ['by its name', 'web-0', {}, { hostname: 'web-0' }],
    ['by its hostname', 'web-0', { hostname: 'db' }, { hostname: 'db' }],
    ['by its name with dots, as a kubelet would', 'a.b.c', {}, { hostname: 'a-b-c', hostnameOverride: 'a.b.c' }],
    [
      'by a name that is cut as a kubelet cuts it',
      `${'n'.repeat(62)}.${'m'.repeat(20)}`,
      {},
      { hostname: 'n'.repeat(62) },
    ],
    ['as it says itself', 'web-0', { hostnameOverride: 'my.own' }, { hostname: 'web-0', hostnameOverride: 'my.own' }],
    [
      'by its whole name where it asks for it, in the words of this cluster',
      'web-0',
      { subdomain: 'db', setHostnameAsFQDN: true },
      { hostname: 'web-0', hostnameOverride: 'web-0.db.team-a.svc.cluster.local' },
    ],
    ['by its short name where it only has a subdomain', 'web-0', { subdomain: 'db' }, { hostname: 'web-0' }],
  ])('%s', (_, name, spec, expected) => {
    const { hostname, hostnameOverride, subdomain, setHostnameAsFQDN } = carried(pod(spec, { name })).pod
      .spec as Record<string, unknown>;
    const given = Object.fromEntries(
      Object.entries({ hostname, hostnameOverride, subdomain, setHostnameAsFQDN }).filter(
        ([, value]) => value !== undefined,
      ),
    );
    expect(given).toEqual(expected);
  });

  test('by no name that is longer than the kernel takes', () => {
    const spec = { subdomain: 's'.repeat(50), setHostnameAsFQDN: true };
    expect(translatePod(pod(spec), view)).toMatchObject({ refused: 'FieldNotSupported' });
  });

  test('by the domain of its own cluster', () => {
    const translation = translatePod(pod({ subdomain: 'db', setHostnameAsFQDN: true }), {
      ...view,
      clusterDomain: 'a.b',
    });
    expect(translation).toMatchObject({ pod: { spec: { hostnameOverride: 'web-0.db.team-a.svc.a.b' } } });
  });
});

describe('Services', () => {
  test('are told to all its containers, by one object that changes in its place', () => {
    const translation = carried(
      pod({ initContainers: [{ name: 'i' }], ephemeralContainers: [{ name: 'e' }], enableServiceLinks: true }),
    );
    const { containers, initContainers, ephemeralContainers } = translation.pod.spec;
    for (const { envFrom } of [...containers, ...initContainers!, ...ephemeralContainers!])
      expect(envFrom).toEqual([services]);
    expect(translation.services).toEqual({ kind: 'ServiceLinks', namespace: 'team-a', all: true });
  });

  test('are not told where the pod wants none, but for the API server’s', () => {
    const { pod: remote, services: links } = carried(pod({ enableServiceLinks: false }));
    expect(links.all).toBe(false);
    expect(remote.spec.containers[0]!.envFrom).toEqual([
      { configMapRef: { name: serviceLinksName(links), optional: true } },
    ]);
    expect(remote.spec.enableServiceLinks).toBe(false);
  });
});

describe('tokens of service accounts', () => {
  const bound = { ...view, serviceAccountTokens: 'Bound' as const };
  const tokenVolume = (more: object = {}, name = 'vault') => ({
    name,
    projected: { sources: [{ serviceAccountToken: { path: 'vault-token', ...more } }] },
  });
  const translate = (spec: Partial<PodSpec>) => {
    const translation = translatePod(pod(spec), bound);
    if (translation.refused !== undefined) throw new Error(translation.message);
    return translation;
  };

  test('lie in a Secret of the pod where the lease lets them out, in the place and beside the files that are usual', () => {
    const mount = { name: serviceAccountVolume.name, mountPath: '/var/run/secrets/kubernetes.io/serviceaccount' };
    const {
      pod: remote,
      tokens,
      configMaps,
    } = translate({
      volumes: [serviceAccountVolume],
      containers: [{ name: 'main', volumeMounts: [mount] }],
    });
    expect(tokens).toEqual([{ key: expect.stringMatching(/^token-/), audience: '', expirationSeconds: 3600 }]);
    expect(configMaps).toEqual([{ name: 'kube-root-ca.crt', optional: false }]);
    expect(remote.spec.containers[0]!.volumeMounts).toEqual([mount]);
    const { projected } = remote.spec.volumes![0]!;
    expect(projected?.sources).toEqual([
      { secret: { name: tokenSecretName(remote.metadata.name), items: [{ key: tokens[0]!.key, path: 'token' }] } },
      {
        configMap: {
          name: remoteObjectName('ConfigMap', 'team-a', 'kube-root-ca.crt'),
          items: [{ key: 'ca.crt', path: 'ca.crt' }],
        },
      },
      { downwardAPI: { items: [{ path: 'namespace', fieldRef: expect.anything() }] } },
    ]);
    expect(remote.metadata.annotations?.[downwardAnnotation('metadata.namespace')]).toBe('team-a');
  });

  test.each([
    ['never for more than an hour', { expirationSeconds: 86_400 }, 3600],
    ['never for the number that makes them last a year', { expirationSeconds: 3607 }, 3600],
    ['for as long as asked', { expirationSeconds: 1200 }, 1200],
    ['for an hour where nothing is asked', {}, 3600],
  ])('are asked for %s', (_, more, expirationSeconds) => {
    expect(translate({ volumes: [tokenVolume(more)] }).tokens).toMatchObject([{ expirationSeconds }]);
  });

  test('are one for each audience', () => {
    const volumes = [tokenVolume({ audience: 'vault' }), tokenVolume({ audience: 'vault' }, 'b'), tokenVolume({}, 'c')];
    expect(translate({ volumes }).tokens.map(({ audience }) => audience)).toEqual(['vault', '']);
  });

  test('are not many', () => {
    const volumes = Array.from({ length: 9 }, (_, i) => tokenVolume({ audience: `a${i}` }, `v${i}`));
    expect(translatePod(pod({ volumes }), bound)).toMatchObject({ refused: 'FieldNotSupported' });
  });

  test('are neither asked for nor mentioned where the lease does not let them out', () => {
    const { tokens, pod: remote } = carried(pod({ volumes: [serviceAccountVolume] }));
    expect(tokens).toEqual([]);
    expect(JSON.stringify(remote)).not.toContain('token-');
    const refused = translatePod(pod({ volumes: [tokenVolume()] }), view);
    expect(refused).toMatchObject({
      refused: 'ServiceAccountTokenNotCarried',
      message: expect.stringMatching(/serviceAccountTokens: Bound/),
    });
  });
});

describe('what stays behind is told', () => {
  test('of a runtime class', () => {
    const { notes, pod: remote } = carried(pod({ runtimeClassName: 'kata' }));
    expect(remote.spec).not.toHaveProperty('runtimeClassName');
    expect(notes).toEqual([{ reason: 'RuntimeClassLeftBehind', message: expect.stringContaining('kata') }]);
    expect(carried(pod()).notes).toEqual([]);
  });

  test('of an ephemeral container that cannot run, and the pod goes on with the others', () => {
    const trace = { name: 'trace', securityContext: { capabilities: { add: ['SYS_PTRACE'] } } };
    const { pod: remote, withheld } = carried(pod({ ephemeralContainers: [trace, { name: 'ok' }] }));
    expect(remote.spec.ephemeralContainers?.map(({ name }) => name)).toEqual(['ok']);
    expect(withheld).toEqual([
      { name: 'trace', message: expect.stringMatching(/^spec\.ephemeralContainers\[0\].*--profile=baseline/) },
    ]);
  });
});

test('a pod that runs is not refused for what it asks for now: the provider judges that', () => {
  const more = pod({ containers: [{ name: 'main', resources: { requests: { cpu: '99' } } }] });
  expect(translatePod(more, view).refused).toBe('LeaseExceeded');
  expect(translatePod(more, view, true).refused).toBeUndefined();
});

test('a field that nobody thought of is refused wherever it stands', () => {
  const places: [Partial<PodSpec>, string][] = [
    [
      { containers: [{ name: 'main', livenessProbe: { httpGet: { port: 1, teleport: 'x' } } }] },
      'spec.containers[0].livenessProbe.httpGet.teleport',
    ],
    [{ securityContext: { teleport: 1 } }, 'spec.securityContext.teleport'],
    [{ volumes: [{ name: 'v', emptyDir: { teleport: 1 } }] }, 'spec.volumes[0].emptyDir.teleport'],
    [{ volumes: [{ name: 'v', teleport: {} }] }, 'spec.volumes[0].teleport'],
    [
      { volumes: [{ name: 'v', projected: { sources: [{ teleport: {} }] } }] },
      'spec.volumes[0].projected.sources[0].teleport',
    ],
    [
      { containers: [{ name: 'main', env: [{ name: 'A', valueFrom: { teleport: {} } }] }] },
      'spec.containers[0].env[0].valueFrom.teleport',
    ],
    [{ dnsConfig: { options: [{ name: 'a', teleport: 1 }] } }, 'spec.dnsConfig.options[0].teleport'],
  ];
  for (const [spec, path] of places) {
    const translation = translatePod(pod(spec), view);
    if (translation.refused === undefined) throw new Error(`${path} was carried`);
    expect(translation.message.startsWith(`${path}:`)).toBe(true);
  }
});

test('resources that a whole pod asks for are the default of what its containers see', () => {
  const container = {
    name: 'main',
    resources: { limits: { memory: '0' } },
    env: ['limits.cpu', 'limits.memory', 'limits.ephemeral-storage'].map((resource, i) => ({
      name: `X${i}`,
      valueFrom: { resourceFieldRef: { resource } },
    })),
  };
  const limits = { cpu: '3', memory: '1Gi' };
  const { env: seen } = carried(pod({ containers: [container], resources: { limits } })).pod.spec.containers[0]!;
  expect(seen?.map(({ value }) => value)).toEqual(['3', String(2 ** 30), String(20 * 2 ** 30)]);
});
