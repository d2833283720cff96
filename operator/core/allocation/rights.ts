/**
 * What the provider's processes may do in its cluster, and what a tenant's account may do in its namespace: the least that
 * works, as lists that the chart and the tests share.
 *
 * Neither holds a right that a tenant's account has (exec, reading its Secrets): inside a tenant the gateway acts with a token
 * of that account. It may make such tokens for accounts named "tenant" alone, and the provisioner bind the fixed roles alone,
 * so they cannot raise themselves above what stands here.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import { type Rule, rbac } from '../rights/rule.ts';

const labels = { [ownLabels.managedBy]: managedBy };

/** The account as which the gateway acts inside a tenant. Pods run as `default`, which has no token and no rights. */
export const tenantAccount = 'tenant';
export const tenantRoleName = 'gpulease-tenant';
export const gatewayRoleName = 'gpulease-gateway';
export const listenerInTenantRoleName = 'gpulease-gateway-in-tenant';
/** Name of the limits and the network policy of a tenant, and of the quota of what costs nothing. */
export const tenantLimits = 'lease';
const limitKinds: ReadonlySet<string> = new Set(['resourcequotas', 'networkpolicies']);

const clusterRole = (name: string, rules: readonly Rule[]) => ({
  apiVersion: `${rbac}/v1`,
  kind: 'ClusterRole',
  metadata: { name, labels },
  rules,
});

/** Bound in each tenant's namespace to its account. */
export const tenantRole = clusterRole(tenantRoleName, [
  {
    apiGroups: [''],
    resources: ['pods', 'configmaps', 'secrets'],
    verbs: ['get', 'list', 'watch', 'create', 'update', 'delete'],
  },
  { apiGroups: [''], resources: ['persistentvolumeclaims'], verbs: ['get', 'list', 'create', 'delete'] },
  { apiGroups: [''], resources: ['pods/resize', 'pods/ephemeralcontainers'], verbs: ['update'] },
  { apiGroups: [''], resources: ['pods/log'], verbs: ['get'] },
  { apiGroups: [''], resources: ['pods/exec', 'pods/attach', 'pods/portforward'], verbs: ['get', 'create'] },
  { apiGroups: [''], resources: ['events'], verbs: ['get', 'list', 'watch'] },
]);

const seen = ['get', 'list', 'watch'];
const applied = ['get', 'create', 'patch'];

/** For the process that faces the internet: it sees what is free, and changes nothing outside of tenants. */
export const listenerRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['nodes', 'pods'], verbs: seen },
  // What kubelets measure, asked at the kubelets. Never nodes/proxy: who has it runs commands in every pod of the cluster.
  { apiGroups: [''], resources: ['nodes/stats', 'nodes/metrics'], verbs: ['get'] },
  { apiGroups: ['gpulease.dev'], resources: ['gpuoffers'], verbs: seen },
];

/**
 * What the listener may do in a tenant: have a token of its account, and keep the consumer's Services. Bound by the
 * provisioner in each tenant's namespace, where listener and provisioner have accounts of their own.
 */
export const listenerInTenantRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['serviceaccounts/token'], verbs: ['create'], resourceNames: [tenantAccount] },
  { apiGroups: [''], resources: ['services'], verbs: [...applied, 'list', 'delete'] },
  { apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], verbs: [...applied, 'update', 'delete'] },
  { apiGroups: [''], resources: ['resourcequotas'], verbs: ['get', 'patch'], resourceNames: [tenantLimits] },
  {
    apiGroups: ['networking.k8s.io'],
    resources: ['networkpolicies'],
    verbs: ['get', 'patch'],
    resourceNames: [tenantLimits],
  },
];
export const listenerInTenantRole = clusterRole(listenerInTenantRoleName, listenerInTenantRules);

/** For the process that makes tenants and takes them away, and listens to nobody. */
export const provisionerRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['nodes'], verbs: [...seen, 'patch'] },
  // Whether a tenant's volumes and pods are gone before its GPUs are sold again, the pods in the word of the kubelet.
  { apiGroups: [''], resources: ['persistentvolumes'], verbs: ['list'] },
  { apiGroups: [''], resources: ['nodes/stats'], verbs: ['get'] },
  { apiGroups: [''], resources: ['pods'], verbs: [...seen, 'delete'] },
  { apiGroups: [''], resources: ['namespaces'], verbs: [...applied, 'list', 'delete'] },
  { apiGroups: [''], resources: ['serviceaccounts', 'resourcequotas', 'limitranges'], verbs: applied },
  { apiGroups: ['networking.k8s.io'], resources: ['networkpolicies'], verbs: applied },
  { apiGroups: [rbac], resources: ['rolebindings'], verbs: applied },
  {
    apiGroups: [rbac],
    resources: ['clusterroles'],
    verbs: ['get', 'bind'],
    resourceNames: [tenantRoleName, listenerInTenantRoleName],
  },
  { apiGroups: ['gpulease.dev'], resources: ['gpuoffers'], verbs: seen },
  { apiGroups: ['gpulease.dev'], resources: ['gpuoffers/status'], verbs: ['patch'] },
  {
    apiGroups: ['admissionregistration.k8s.io'],
    resources: ['validatingadmissionpolicies', 'validatingadmissionpolicybindings'],
    verbs: applied,
  },
];

/** Of one process that does both. */
export const gatewayRole = clusterRole(gatewayRoleName, [
  ...provisionerRules,
  ...listenerRules,
  ...listenerInTenantRules.filter(({ resources }) => !resources.some((one) => limitKinds.has(one))),
]);

/** In the namespace of records and ledgers. */
export const listenerHomeRules: readonly Rule[] = [
  // Records of leases, the certificate, the key of the tokens that consumers get. RBAC cannot tell them apart.
  { apiGroups: [''], resources: ['secrets'], verbs: [...seen, 'create', 'update'] },
  { apiGroups: [''], resources: ['configmaps'], verbs: seen },
];
export const provisionerHomeRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['secrets'], verbs: [...seen, 'update', 'delete'] },
  { apiGroups: [''], resources: ['configmaps'], verbs: [...seen, 'create', 'update'] },
  { apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['get', 'create', 'update'] },
];
/** In the provisioner's own namespace: what was signed and may not be sent yet. */
export const provisionerPrivateRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['secrets'], verbs: ['get', 'create', 'patch'] },
];

/** In the namespace where one process that does both keeps its records, ledgers, outboxes and keys. */
export const gatewayHomeRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['secrets', 'configmaps'], verbs: [...seen, 'create', 'update', 'patch', 'delete'] },
  { apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['get', 'create', 'update'] },
];
