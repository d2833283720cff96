/**
 * Somebody who got hold of a tenant's account at the provider's cluster itself, past the gateway: what its role, pod security
 * and quota leave. And the program in the pod, which has no account at all.
 */
import { type Attack, must } from '../attack.ts';
import { ask, type Real, type Target } from '../target.ts';

const realOf = ({ real }: Target): Real => {
  if (!real) throw new Error('there are no clusters');
  return real;
};

type Asked = readonly [method: string, path: string, body?: object];

const withAccount = (
  name: string,
  asked: (real: Real, target: Target) => Asked | Promise<Asked>,
  statuses: readonly number[] = [403],
): Attack => ({
  who: 'consumer',
  name: `with the stolen account of the tenant: ${name}`,
  expected: statuses.join(' or '),
  needs: 'clusters',
  async run(target) {
    const real = realOf(target);
    const { status, body } = await real.asTenant(...(await asked(real, target)));
    const message = (/"message":\s*"((?:[^"\\]|\\.)*)"/.exec(body)?.[1] ?? body).slice(0, 110);
    must(statuses.includes(status), `${status} ${message}`);
    return `${status} ${message}`;
  },
});

interface Template {
  readonly metadata: { readonly labels?: object; readonly annotations?: object };
  readonly spec: { readonly containers: readonly object[]; readonly [field: string]: unknown };
}
const templates = new WeakMap<Target, Promise<Template>>();

/** A pod as the gateway makes it, which the account may make as well: what is refused below is refused for what is changed in it. */
function templateOf(target: Target): Promise<Template> {
  const known = templates.get(target);
  if (known) return known;
  const real = realOf(target);
  const made = (async () => {
    const path = `/v1/leases/${target.mallory.leaseId}/kube/pods`;
    const token = await target.token();
    const containers = [{ name: 'c', image: 'registry.example/none:1' }];
    const body = { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'template' }, spec: { containers } };
    const answer = await ask(target, { method: 'POST', path, token, body });
    must(answer.status === 201, `a plain pod is not taken: ${answer.status} ${answer.body.slice(0, 200)}`);
    await ask(target, { method: 'DELETE', path: `${path}/template?gracePeriodSeconds=0`, token });
    const { metadata, spec } = JSON.parse(answer.body) as Template;
    const template = { metadata: { labels: metadata.labels, annotations: metadata.annotations }, spec } as Template;
    const plain = { apiVersion: 'v1', kind: 'Pod', ...template, metadata: { ...template.metadata, name: 'plain' } };
    const { status, body: said } = await real.asTenant('POST', inTenant(real, 'pods'), plain);
    must(status === 201, `a plain pod is not taken from the account: ${status} ${said.slice(0, 300)}`);
    await real.asTenant('DELETE', `${inTenant(real, 'pods')}/plain?gracePeriodSeconds=0`);
    return template;
  })();
  templates.set(target, made);
  made.catch(() => templates.delete(target));
  return made;
}

const inTenant = ({ tenantNamespace }: Real, rest: string) => `/api/v1/namespaces/${tenantNamespace}/${rest}`;
/** The same pod, with these changes. */
const pod =
  (spec: object, container: object = {}) =>
  ({ metadata, spec: its }: Template) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { ...metadata, name: 'evil' },
    spec: { ...its, containers: [{ ...its.containers[0], ...container }], ...spec },
  });
const rbac = '/apis/rbac.authorization.k8s.io/v1';

const accounts: readonly Attack[] = [
  withAccount('Secrets of all namespaces', () => ['GET', '/api/v1/secrets']),
  withAccount('a watch on Secrets of all namespaces', () => ['GET', '/api/v1/secrets?watch=true&timeoutSeconds=1']),
  withAccount('Secrets of another tenant', ({ victimNamespace }) => [
    'GET',
    `/api/v1/namespaces/${victimNamespace}/secrets`,
  ]),
  withAccount('the gateway’s own Secrets', () => ['GET', '/api/v1/namespaces/gpulease-system/secrets']),
  withAccount('the ledger of GPUs', ({ nodeName }) => [
    'PUT',
    `/api/v1/namespaces/gpulease-system/configmaps/ledger-${nodeName}`,
    {},
  ]),
  withAccount('pods of all namespaces', () => ['GET', '/api/v1/pods']),
  withAccount('a command in another tenant’s pod', ({ victimNamespace }) => [
    'POST',
    `/api/v1/namespaces/${victimNamespace}/pods/p/exec?command=sh&stdout=true`,
  ]),
  withAccount('nodes', () => ['GET', '/api/v1/nodes']),
  withAccount('the kubelet, through the API server', ({ nodeName }) => ['GET', `/api/v1/nodes/${nodeName}/proxy/pods`]),
  withAccount('its own quota, lifted', (real) => ['DELETE', inTenant(real, 'resourcequotas/lease')]),
  withAccount('the quota of what was bought, lifted', (real) => ['DELETE', inTenant(real, 'resourcequotas/bought')]),
  withAccount('its namespace, labelled privileged', ({ tenantNamespace }) => [
    'PUT',
    `/api/v1/namespaces/${tenantNamespace}`,
    { metadata: { name: tenantNamespace, labels: { 'pod-security.kubernetes.io/enforce': 'privileged' } } },
  ]),
  withAccount('another token of itself, for a year', (real) => [
    'POST',
    inTenant(real, 'serviceaccounts/tenant/token'),
    { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 31_536_000 } },
  ]),
  withAccount('the role of an administrator', () => [
    'POST',
    `${rbac}/clusterrolebindings`,
    {
      metadata: { name: 'evil' },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'cluster-admin' },
    },
  ]),
  withAccount('a Service, to be found by others', (real) => [
    'POST',
    inTenant(real, 'services'),
    { metadata: { name: 'kubernetes' }, spec: { ports: [{ port: 443 }] } },
  ]),
  withAccount('its network policy, removed', ({ tenantNamespace }) => [
    'DELETE',
    `/apis/networking.k8s.io/v1/namespaces/${tenantNamespace}/networkpolicies/lease`,
  ]),
  withAccount('a certificate of a node', () => [
    'POST',
    '/apis/certificates.k8s.io/v1/certificatesigningrequests',
    {
      metadata: { name: 'evil' },
      spec: { request: 'eA==', signerName: 'kubernetes.io/kube-apiserver-client-kubelet' },
    },
  ]),
  withAccount('price and stock of the provider', () => ['PUT', '/apis/gpulease.dev/v1alpha1/gpuoffers/rtx4090', {}]),
  ...(
    [
      ['a privileged pod', pod({}, { securityContext: { privileged: true } })],
      ['a pod with the host’s files', pod({ volumes: [{ name: 'v', hostPath: { path: '/' } }] })],
      ['a pod on the host’s network', pod({ hostNetwork: true })],
      ['a pod among the host’s processes', pod({ hostPID: true })],
      ['a pod with SYS_ADMIN', pod({}, { securityContext: { capabilities: { add: ['SYS_ADMIN'] } } })],
      ['a pod without seccomp', pod({ securityContext: { seccompProfile: { type: 'Unconfined' } } })],
      ['a pod with an unmasked /proc', pod({ hostUsers: true }, { securityContext: { procMount: 'Unmasked' } })],
      ['a pod with a port of the host', pod({}, { ports: [{ containerPort: 80, hostPort: 80 }] })],
      [
        'a pod with more GPUs than the lease has',
        (template) => {
          const { limits } = (template.spec.containers[0] as { resources?: { limits?: object } }).resources ?? {};
          return pod({}, { resources: { limits: { ...limits, 'nvidia.com/gpu': '8' } } })(template);
        },
      ],
      ['a pod on another node', pod({ nodeName: 'somebody-elses-node' })],
      [
        'a pod as the account itself, with its token',
        pod({ serviceAccountName: 'tenant', automountServiceAccountToken: true }),
      ],
      [
        'a pod that asks the image’s runtime for every GPU',
        pod({}, { env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }] }),
      ],
    ] as [string, (template: Template) => object][]
  ).map(([name, change]) =>
    withAccount(
      name,
      async (real, target) => ['POST', inTenant(real, 'pods'), change(await templateOf(target))],
      [403, 422],
    ),
  ),
];

const inPod = (name: string, expected: string, command: string, right: (out: string) => boolean): Attack => ({
  who: 'pod',
  name,
  expected,
  needs: 'containers',
  async run(target) {
    const out = (await realOf(target).exec(['sh', '-c', command])).trim();
    must(right(out), out.slice(0, 300) || '(nothing)');
    return out.split('\n').slice(-2).join(' ').slice(0, 110) || '(nothing)';
  },
});

const program: readonly Attack[] = [
  inPod(
    'looks for a token of the cluster',
    'there is none',
    'ls /var/run/secrets/kubernetes.io/serviceaccount 2>&1; echo done',
    (out) => !/token/.test(out) && out.endsWith('done'),
  ),
  inPod(
    'looks for powers over the host',
    'none of SYS_ADMIN, SYS_MODULE, SYS_PTRACE, NET_ADMIN, SYS_RAWIO',
    'grep CapEff /proc/self/status',
    (out) => {
      const caps = BigInt(`0x${/CapEff:\s*([0-9a-f]+)/.exec(out)?.[1] ?? 'ffffffffffffffff'}`);
      return [21, 16, 19, 12, 17].every((bit) => ((caps >> BigInt(bit)) & 1n) === 0n);
    },
  ),
  inPod(
    'mounts the host’s disk',
    'not permitted',
    'mkdir -p /tmp/m; mount -t proc proc /tmp/m 2>&1; echo "rc $?"',
    (out) => !out.endsWith('rc 0'),
  ),
  inPod(
    'writes to the kernel',
    'read-only, or not there',
    'echo 1 > /proc/sys/kernel/sysrq 2>/dev/null && echo written; echo "rc $?"',
    (out) => !out.includes('written'),
  ),
  inPod(
    'sees the host’s processes',
    'its own alone',
    'ls /proc | grep -c "^[0-9]"',
    (out) => Number(out) > 0 && Number(out) < 10,
  ),
  inPod(
    'is shown no GPU that it did not ask for',
    'NVIDIA_VISIBLE_DEVICES=void',
    'env | grep NVIDIA_VISIBLE_DEVICES',
    (out) => out === 'NVIDIA_VISIBLE_DEVICES=void',
  ),
  {
    who: 'pod',
    name: 'sends 60 MB to who does not read',
    expected: 'the gateway keeps little of it',
    needs: 'containers',
    async run(target) {
      const real = realOf(target);
      const before = real.gatewayMemory();
      const out = await real.exec(['sh', '-c', 'head -c 60000000 /dev/zero | wc -c']);
      must(out.trim() === '60000000', out);
      const grown = (real.gatewayMemory() - before) / 1e6;
      must(grown < 100, `${grown.toFixed(0)} MB more`);
      return `${grown.toFixed(0)} MB more`;
    },
  },
];

export const stolen: readonly Attack[] = [...accounts, ...program];
