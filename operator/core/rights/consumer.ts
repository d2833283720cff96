/**
 * What each process of the consumer's side may do in its cluster: the least that works. The chart, the tests and the
 * reference are made from these lists.
 *
 * RBAC knows names of objects only where a request names one. Whatever has to be listed is therefore kept apart by namespace
 * (the wallet's), by binding (Secrets, tokens), or by an admission policy (guards.ts).
 */
import { type Account, type Rule, rbac } from './rule.ts';

export const operatorNamespace = 'gpulease-system';
export const walletNamespace = 'gpulease-wallet';
/** ConfigMap in the wallet's namespace by which the operator finds the wallet. Also the audience of the token that it shows. */
export const walletName = 'gpulease-wallet';

/** What the operator may do in a namespace because a lease is there: bound by the approver, and no longer than that. */
export const operatorInNamespaceRoleName = 'gpulease-operator-in-namespace';
/** The same for leases whose pods get tokens of their accounts (`access.serviceAccountTokens: Bound`). */
export const operatorTokensRoleName = 'gpulease-operator-tokens';

const seen = ['get', 'list', 'watch'];

export const operatorInNamespaceRules: readonly Rule[] = [
  // By name alone: those that pods on leased nodes refer to.
  { apiGroups: [''], resources: ['secrets'], verbs: ['get'] },
  { apiGroups: [''], resources: ['configmaps'], verbs: seen },
];
export const operatorTokensRules: readonly Rule[] = [
  { apiGroups: [''], resources: ['serviceaccounts/token'], verbs: ['create'] },
];

const operator: Account = {
  side: 'consumer',
  process: 'operator',
  serviceAccount: 'gpulease-operator',
  namespace: operatorNamespace,
  cluster: [
    { apiGroups: ['gpulease.dev'], resources: ['gpuleases', 'gpuproviders'], verbs: [...seen, 'patch'] },
    { apiGroups: ['gpulease.dev'], resources: ['gpubudgets'], verbs: seen },
    { apiGroups: ['gpulease.dev'], resources: ['gpuoffers'], verbs: [...seen, 'create', 'patch', 'delete'] },
    { apiGroups: ['gpulease.dev'], resources: ['gpuaccesses'], verbs: ['get', 'create', 'patch'] },
    {
      apiGroups: ['gpulease.dev'],
      resources: ['gpuleases/status', 'gpuproviders/status', 'gpubudgets/status', 'gpuoffers/status'],
      verbs: ['patch'],
    },
    // gpulease-operator-confined keeps it to nodes of ours, and pods on them.
    { apiGroups: [''], resources: ['nodes'], verbs: [...seen, 'create', 'update', 'patch', 'delete'] },
    { apiGroups: [''], resources: ['pods'], verbs: [...seen, 'patch', 'delete'] },
    { apiGroups: [''], resources: ['nodes/status', 'pods/status'], verbs: ['patch'] },
    { apiGroups: [''], resources: ['pods/eviction'], verbs: ['create'] },
    { apiGroups: [''], resources: ['persistentvolumes'], verbs: [...seen, 'create', 'delete'] },
    { apiGroups: [''], resources: ['persistentvolumeclaims'], verbs: [...seen, 'patch'] },
    { apiGroups: [''], resources: ['persistentvolumeclaims/status'], verbs: ['patch'] },
    { apiGroups: [''], resources: ['namespaces', 'services'], verbs: seen },
    {
      apiGroups: ['discovery.k8s.io'],
      resources: ['endpointslices'],
      verbs: [...seen, 'create', 'patch', 'delete'],
    },
    { apiGroups: ['resource.k8s.io'], resources: ['resourceclaims'], verbs: ['get'] },
    { apiGroups: ['resource.k8s.io'], resources: ['resourceslices'], verbs: ['get', 'create', 'update', 'delete'] },
    { apiGroups: ['events.k8s.io'], resources: ['events'], verbs: ['create', 'patch'] },
    {
      apiGroups: ['certificates.k8s.io'],
      resources: ['certificatesigningrequests'],
      verbs: ['get', 'create', 'delete'],
    },
    { apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'], verbs: ['create'] },
    { apiGroups: ['authorization.k8s.io'], resources: ['subjectaccessreviews'], verbs: ['create'] },
    // To see that it is there: who may write one may change whatever anybody writes.
    {
      apiGroups: ['admissionregistration.k8s.io'],
      resources: ['mutatingadmissionpolicies', 'mutatingadmissionpolicybindings'],
      verbs: ['get'],
      resourceNames: ['gpulease-not-evicted'],
    },
  ],
  within: [
    {
      namespace: operatorNamespace,
      rules: [
        { apiGroups: [''], resources: ['secrets'], verbs: ['get', 'list', 'create', 'update', 'delete'] },
        { apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['get', 'create', 'update'] },
      ],
    },
    {
      namespace: walletNamespace,
      rules: [{ apiGroups: [''], resources: ['configmaps'], verbs: ['get'], resourceNames: [walletName] }],
    },
    // Heartbeats of nodes.
    {
      namespace: 'kube-node-lease',
      rules: [{ apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['create', 'patch', 'delete'] }],
    },
    // The CA that signed the certificate with which the API server calls kubelets.
    {
      namespace: 'kube-system',
      rules: [
        {
          apiGroups: [''],
          resources: ['configmaps'],
          verbs: ['get'],
          resourceNames: ['extension-apiserver-authentication'],
        },
      ],
    },
  ],
  holds: 'the session key, which signs vouchers, access to gateways and receipts; records and receipts of leases',
  ifStolen: {
    could: [
      'vouch for seconds that were not served, up to the deposits of open escrows',
      'have the wallet open escrows with quotes that a provider signed, and top up, within its daily limits',
      'read Secrets and ConfigMaps by name in namespaces with leases; get tokens of accounts there, where a lease has them bound',
      'change and delete pods on nodes called gpu-…, nodes of its own, and pods of DaemonSets that are not bound yet; evict any pod, as far as PodDisruptionBudgets let',
      'change leases, providers and offers; read all pods, Services, claims and namespaces; write events; point EndpointSlices at addresses of its choice',
    ],
    couldNot: [
      'move money anywhere but into listed escrows, or more of it than the limits let',
      "read the wallet's key or its stored transactions, or Secrets of namespaces without leases",
      'change pods on other nodes or their nodes, make pods, roles or bindings, or sign certificates',
    ],
  },
};

const wallet: Account = {
  side: 'consumer',
  process: 'wallet',
  serviceAccount: 'gpulease-wallet',
  namespace: walletNamespace,
  cluster: [{ apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'], verbs: ['create'] }],
  within: [
    {
      namespace: walletNamespace,
      rules: [
        // The key, where it is a Secret, and the outboxes.
        { apiGroups: [''], resources: ['secrets'], verbs: ['get', 'create', 'patch'] },
        { apiGroups: [''], resources: ['configmaps'], verbs: ['create', 'patch'] },
        { apiGroups: ['coordination.k8s.io'], resources: ['leases'], verbs: ['get', 'create', 'update'] },
      ],
    },
  ],
  holds: "the wallet's key, unless a remote signer has it; transactions that are signed and not mined",
  ifStolen: {
    could: [
      'with the key: move all that the wallet has; with a remote signer, what that signer lets it',
      'forge where the operator looks for the wallet, and so keep it from paying',
    ],
    couldNot: [
      'do anything with nodes, pods, leases or Secrets of other namespaces',
      'vouch for seconds: it has no session key',
    ],
  },
};

const approver: Account = {
  side: 'consumer',
  process: 'approver',
  serviceAccount: 'gpulease-approver',
  namespace: operatorNamespace,
  cluster: [
    { apiGroups: ['certificates.k8s.io'], resources: ['certificatesigningrequests'], verbs: ['list', 'watch'] },
    { apiGroups: ['certificates.k8s.io'], resources: ['certificatesigningrequests/approval'], verbs: ['update'] },
    {
      apiGroups: ['certificates.k8s.io'],
      resources: ['signers'],
      verbs: ['approve'],
      resourceNames: ['kubernetes.io/kubelet-serving'],
    },
    { apiGroups: [''], resources: ['nodes'], verbs: ['get', 'list'] },
    { apiGroups: ['gpulease.dev'], resources: ['gpuleases'], verbs: ['list', 'watch'] },
    { apiGroups: [''], resources: ['namespaces'], verbs: ['list', 'watch'] },
    // gpulease-approver-confined keeps the bindings to the operator's account, and to namespaces of users.
    { apiGroups: [rbac], resources: ['rolebindings'], verbs: ['list', 'create', 'delete'] },
    {
      apiGroups: [rbac],
      resources: ['clusterroles'],
      verbs: ['bind'],
      resourceNames: [operatorInNamespaceRoleName, operatorTokensRoleName],
    },
  ],
  // Where the operator's pods are, whose addresses are those of the nodes.
  within: [{ namespace: operatorNamespace, rules: [{ apiGroups: [''], resources: ['pods'], verbs: ['list'] }] }],
  holds: 'nothing',
  ifStolen: {
    could: [
      'approve serving certificates of kubelets, also for nodes that are not ours',
      'let the operator into namespaces without leases, but for kube-system and those of gpulease; shut it out of others',
    ],
    couldNot: ['bind anything to an account other than the operator’s, read a Secret, or approve client certificates'],
  },
};

export const consumerAccounts: readonly Account[] = [operator, wallet, approver];
