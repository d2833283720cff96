/**
 * What the gateway may do in the provider's cluster, and what a tenant's account may do in its namespace: the least that
 * works, as one list that the chart and the tests share.
 *
 * The gateway holds no right that a tenant's account has (exec, reading its Secrets): inside a tenant it acts with a token of
 * that account. It may make such tokens for accounts named "tenant" alone, and bind the one fixed role alone, so it cannot
 * raise itself above what stands here.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';

interface Rule {
  readonly apiGroups: readonly string[];
  readonly resources: readonly string[];
  readonly verbs: readonly string[];
  readonly resourceNames?: readonly string[];
}

const rbac = 'rbac.authorization.k8s.io';
const labels = { [ownLabels.managedBy]: managedBy };

/** The account as which the gateway acts inside a tenant. Pods run as `default`, which has no token and no rights. */
export const tenantAccount = 'tenant';
export const tenantRoleName = 'gpulease-tenant';
export const gatewayRoleName = 'gpulease-gateway';

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

export const gatewayRole = clusterRole(gatewayRoleName, [
  { apiGroups: [''], resources: ['nodes'], verbs: [...seen, 'patch'] },
  // What kubelets measure, asked at the kubelets. Never nodes/proxy: who has it runs commands in every pod of the cluster.
  { apiGroups: [''], resources: ['nodes/stats', 'nodes/metrics'], verbs: ['get'] },
  { apiGroups: [''], resources: ['pods'], verbs: [...seen, 'delete'] },
  { apiGroups: [''], resources: ['namespaces'], verbs: [...applied, 'list', 'delete'] },
  { apiGroups: [''], resources: ['serviceaccounts', 'resourcequotas', 'limitranges'], verbs: applied },
  { apiGroups: [''], resources: ['serviceaccounts/token'], verbs: ['create'], resourceNames: [tenantAccount] },
  { apiGroups: [''], resources: ['services'], verbs: [...applied, 'list', 'delete'] },
  { apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], verbs: [...applied, 'update', 'delete'] },
  { apiGroups: ['networking.k8s.io'], resources: ['networkpolicies'], verbs: applied },
  { apiGroups: [rbac], resources: ['rolebindings'], verbs: applied },
  { apiGroups: [rbac], resources: ['clusterroles'], verbs: ['get', 'bind'], resourceNames: [tenantRoleName] },
  { apiGroups: ['gpulease.dev'], resources: ['gpuoffers'], verbs: seen },
  { apiGroups: ['gpulease.dev'], resources: ['gpuoffers/status'], verbs: ['patch'] },
  {
    apiGroups: ['admissionregistration.k8s.io'],
    resources: ['validatingadmissionpolicies', 'validatingadmissionpolicybindings'],
    verbs: applied,
  },
]);

/** In the namespace where it keeps its records, ledgers and keys. */
export const gatewayHomeRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['secrets', 'configmaps'], verbs: [...seen, 'create', 'update', 'patch', 'delete'] },
  { apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['get', 'create', 'update'] },
];
