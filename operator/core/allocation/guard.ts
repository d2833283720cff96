/**
 * A pod of the provider's own cannot take a sold GPU: an admission policy that the API server itself enforces, also while
 * every gateway is down.
 *
 * The taint keeps ordinary pods away from offered nodes. What gets past it is a pod that tolerates the taint, or that
 * names its node and so skips the scheduler; either is refused when it asks for GPUs. Pods of tenants are exempt. Which
 * node a pod names cannot be looked up by the policy, so naming any node is refused, offered or not; a node selector does
 * the same and is allowed.
 */
import { managedBy, labels as ownLabels, taints } from '../../api/labels.ts';

export const guardName = 'gpulease-offered-gpus';

/** CEL over the containers of a pod: does any ask for a device of NVIDIA? */
const asks = (list: string) =>
  `(has(object.spec.${list}) && object.spec.${list}.exists(c, has(c.resources) && ` +
  `((has(c.resources.requests) && c.resources.requests.exists(k, k.startsWith('nvidia.com/'))) || ` +
  `(has(c.resources.limits) && c.resources.limits.exists(k, k.startsWith('nvidia.com/'))))))`;

const tolerates = (pod: string) =>
  `(has(${pod}.spec.tolerations) && ${pod}.spec.tolerations.exists(t, ` +
  `(!has(t.key) || t.key == '' || t.key == '${taints.offered}') && ` +
  `(!has(t.effect) || t.effect == '' || t.effect == 'NoSchedule')))`;

const labels = { [ownLabels.managedBy]: managedBy };

/** ValidatingAdmissionPolicy and its binding (admissionregistration.k8s.io/v1, Kubernetes 1.30 and later). */
export function guardObjects() {
  return {
    policy: {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'ValidatingAdmissionPolicy',
      metadata: { name: guardName, labels },
      spec: {
        failurePolicy: 'Fail',
        matchConstraints: {
          resourceRules: [
            { apiGroups: [''], apiVersions: ['v1'], operations: ['CREATE', 'UPDATE'], resources: ['pods'] },
          ],
        },
        matchConditions: [{ name: 'asks-for-gpus', expression: `${asks('containers')} || ${asks('initContainers')}` }],
        variables: [
          { name: 'tolerates', expression: tolerates('object') },
          // A pod that was there before the policy may still be updated, so that its finalizers can go.
          { name: 'toleratedBefore', expression: `request.operation == 'UPDATE' && ${tolerates('oldObject')}` },
          {
            name: 'namesNode',
            expression: `request.operation == 'CREATE' && has(object.spec.nodeName) && object.spec.nodeName != ''`,
          },
        ],
        validations: [
          {
            expression: '!variables.tolerates || variables.toleratedBefore',
            message: `this pod asks for GPUs and tolerates ${taints.offered}: the GPUs of offered nodes are rented out; remove the toleration, or the label ${ownLabels.offered} from a node to use it yourself`,
            reason: 'Forbidden',
          },
          {
            expression: '!variables.namesNode',
            message: `this pod asks for GPUs and sets spec.nodeName, past the scheduler, so that it could take GPUs that are rented out; use a nodeSelector on kubernetes.io/hostname instead`,
            reason: 'Forbidden',
          },
        ],
      },
    },
    binding: {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'ValidatingAdmissionPolicyBinding',
      metadata: { name: guardName, labels },
      spec: {
        policyName: guardName,
        validationActions: ['Deny'],
        matchResources: {
          namespaceSelector: { matchExpressions: [{ key: ownLabels.tenant, operator: 'DoesNotExist' }] },
        },
      },
    },
  };
}
