/**
 * What keeps Kubernetes from evicting the pods of a leased node whose operator is away: an admission policy in the consumer's
 * API server, which goes on while no process of ours does.
 *
 * A node that is not heard of gets a taint with the effect NoExecute, and pods that do not tolerate it are evicted after 300
 * seconds. The policy takes that taint out of whatever writes it to one of our nodes. The NoSchedule taints stay, so nothing
 * new is put there, and the operator ends pods itself, when a fact says that they have ended. So pods need not be touched,
 * and neither their generation nor their tolerations differ from what their author sees on any other node.
 *
 * Where there is no such policy (MutatingAdmissionPolicy is v1 since Kubernetes 1.36; the right to make one may be missing),
 * each pod is changed instead: see `tolerations.ts`.
 * https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';

export const evictionGuardName = 'gpulease-not-evicted';

const labels = { [ownLabels.managedBy]: managedBy };
const evicts = `t.effect == 'NoExecute' && t.key in ['node.kubernetes.io/not-ready', 'node.kubernetes.io/unreachable']`;
const taints = 'object.spec.?taints.orValue([])';

/** MutatingAdmissionPolicy and its binding (admissionregistration.k8s.io/v1). */
export function evictionGuard() {
  return {
    policy: {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'MutatingAdmissionPolicy',
      metadata: { name: evictionGuardName, labels },
      spec: {
        // Were it to fail, the taint would be there, as on any node.
        failurePolicy: 'Ignore',
        reinvocationPolicy: 'Never',
        matchConstraints: {
          resourceRules: [{ apiGroups: [''], apiVersions: ['v1'], operations: ['UPDATE'], resources: ['nodes'] }],
        },
        matchConditions: [{ name: 'would-evict', expression: `${taints}.exists(t, ${evicts})` }],
        mutations: [
          {
            patchType: 'JSONPatch',
            jsonPatch: {
              expression: `[JSONPatch{op: 'replace', path: '/spec/taints', value: ${taints}.filter(t, !(${evicts}))}]`,
            },
          },
        ],
      },
    },
    binding: {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'MutatingAdmissionPolicyBinding',
      metadata: { name: evictionGuardName, labels },
      spec: {
        policyName: evictionGuardName,
        matchResources: { objectSelector: { matchLabels: labels } },
      },
    },
  };
}
