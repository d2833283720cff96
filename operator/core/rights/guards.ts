/**
 * What RBAC cannot say, said in CEL inside the API server: the operator's account changes nodes of ours and pods on them, and
 * the approver's binds the operator's two roles to the operator, in namespaces of users. They concern requests of these
 * two accounts alone, so they fail closed: nobody else is held up by them.
 *
 * An eviction names its pod and nothing else, so a policy cannot see where that pod is. It honours PodDisruptionBudgets.
 *
 * https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/ (v1 since Kubernetes 1.30)
 */
import { managedBy, labels as ownLabels, virtualNodePrefix } from '../../api/labels.ts';
import { operatorInNamespaceRoleName, operatorNamespace, operatorTokensRoleName, walletNamespace } from './consumer.ts';
import type { RbacObject } from './rbac.ts';

/** Never let in, whatever leases say. */
export const closedNamespaces: readonly string[] = [
  'kube-system',
  'kube-public',
  'kube-node-lease',
  operatorNamespace,
  walletNamespace,
];

export interface Confined {
  /** `system:serviceaccount:…` */
  readonly operator: string;
  readonly approver: string;
  /** Beside the usual ones: where gpulease keeps its own things under other names. */
  readonly closed?: readonly string[];
}

const text = (value: string) => `'${value.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
const list = (values: readonly string[]) => `[${values.map(text).join(', ')}]`;

const before = `(request.operation == 'CREATE' ? object : oldObject)`;
const isOurs = (it: string) =>
  `has(${it}.metadata.labels) && ${text(ownLabels.managedBy)} in ${it}.metadata.labels && ${it}.metadata.labels[${text(ownLabels.managedBy)}] == ${text(managedBy)}`;
/** Bound to a node of ours, or a pod that a DaemonSet has made for one and that policies keep unbound. */
const isThere = `has(oldObject.spec.nodeName) && oldObject.spec.nodeName != '' ? oldObject.spec.nodeName.startsWith(${text(virtualNodePrefix)}) : (request.operation == 'DELETE' && has(oldObject.metadata.labels) && 'controller-revision-hash' in oldObject.metadata.labels)`;

export function guards({ operator, approver, closed = [] }: Confined): readonly RbacObject[] {
  const [, , namespace = '', name = ''] = operator.split(':');
  const isOperator = operator.startsWith('system:serviceaccount:')
    ? `s.kind == 'ServiceAccount' && s.name == ${text(name)} && s.namespace == ${text(namespace)}`
    : `s.kind == 'User' && s.name == ${text(operator)}`;
  const roles = list([operatorInNamespaceRoleName, operatorTokensRoleName]);
  return [
    ...policy('gpulease-operator-confined', operator, [
      {
        rules: [
          rule('', ['nodes', 'nodes/status'], ['CREATE', 'UPDATE', 'DELETE']),
          rule('', ['persistentvolumes'], ['CREATE', 'UPDATE', 'DELETE']),
        ],
        when: `request.resource.resource in ['nodes', 'persistentvolumes']`,
        must: `${isOurs(before)}${` && (request.resource.resource != 'nodes' || ${before}.metadata.name.startsWith(${text(virtualNodePrefix)}))`}`,
        message: 'the operator of gpulease changes only nodes and volumes of its own',
      },
      {
        rules: [rule('', ['pods', 'pods/status'], ['UPDATE', 'DELETE'])],
        when: `request.resource.resource == 'pods'`,
        must: isThere,
        message: 'the operator of gpulease changes only pods on leased nodes',
      },
    ]),
    ...policy('gpulease-approver-confined', approver, [
      {
        rules: [rule('rbac.authorization.k8s.io', ['rolebindings'], ['CREATE', 'UPDATE', 'DELETE'])],
        when: `request.resource.resource == 'rolebindings'`,
        must: `${before}.roleRef.kind == 'ClusterRole' && ${before}.roleRef.name in ${roles} && (request.operation == 'DELETE' || (object.roleRef.name in ${roles} && object.subjects.all(s, ${isOperator}) && !(request.namespace in ${list([...closedNamespaces, ...closed])})))`,
        message: 'the approver of gpulease binds only roles of the operator, to the operator, in namespaces of users',
      },
    ]),
  ];
}

interface Validation {
  readonly rules: readonly object[];
  readonly when: string;
  readonly must: string;
  readonly message: string;
}

const rule = (group: string, resources: readonly string[], operations: readonly string[]) => ({
  apiGroups: [group],
  apiVersions: ['v1'],
  operations,
  resources,
});

function policy(name: string, user: string, validations: readonly Validation[]): RbacObject[] {
  const admission = 'admissionregistration.k8s.io/v1';
  const metadata = { name, labels: { [ownLabels.managedBy]: managedBy } };
  return [
    {
      apiVersion: admission,
      kind: 'ValidatingAdmissionPolicy',
      metadata,
      spec: {
        failurePolicy: 'Fail',
        matchConstraints: { resourceRules: validations.flatMap(({ rules }) => rules) },
        matchConditions: [{ name: 'account', expression: `request.userInfo.username == ${text(user)}` }],
        validations: validations.map(({ when, must, message }) => ({
          expression: `!(${when}) || (${must})`,
          message,
          reason: 'Forbidden',
        })),
      },
    },
    {
      apiVersion: admission,
      kind: 'ValidatingAdmissionPolicyBinding',
      metadata,
      spec: { policyName: name, validationActions: ['Deny'] },
    },
  ];
}
