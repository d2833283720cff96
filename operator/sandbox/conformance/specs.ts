/**
 * Which specs are run, as the regular expressions over full names that Ginkgo takes.
 *
 * A node's own are those that are both NodeConformance and Conformance: 141 in v1.36, none of which needs to have a
 * cluster to itself.
 */

export const nodeConformance = '\\[NodeConformance\\].*\\[Conformance\\]';

/** Beside a node's own: what users do with pods on it, through kubectl, Jobs and service accounts. */
export const also: readonly string[] = [
  '\\[sig-cli\\] Kubectl client Simple pod ',
  '\\[sig-cli\\] Kubectl logs ',
  '\\[sig-cli\\] Kubectl Port forwarding ',
  '\\[sig-apps\\] Job .*\\[Conformance\\]',
  '\\[sig-auth\\] ServiceAccounts .*\\[Conformance\\]',
  '\\[sig-network\\] Proxy .*\\[Conformance\\]',
];

/**
 * Of what `also` names, what is left out: specs that need a cluster to themselves, much time, or a feature that is off; two
 * whose pods call this cluster's API server, which needs the way back to it; and two of Jobs whose pods are
 * privileged, which no profile gives, and for which the suite would wait a quarter of an hour each.
 */
export const never = [
  '\\[(Serial|Disruptive|Slow|Flaky)\\]',
  '\\[Feature:',
  '\\[(Alpha|Beta)\\]',
  'should handle in-cluster config',
  'should support OIDC discovery of service account issuer',
  'pod failure policy on exit code to fail the job early',
  'pod failure policy to ignore failure matching on DisruptionTarget',
].join('|');

export interface Choice {
  readonly focus: readonly string[];
  readonly skip?: string;
}

/** A focus that is given by hand is taken as it is. */
export const choose = (given: string | undefined, withAlso: boolean): Choice => {
  if (given !== undefined) return { focus: [given] };
  return withAlso ? { focus: [nodeConformance, ...also], skip: never } : { focus: [nodeConformance] };
};

export type Profile = 'baseline' | 'trusted';

/**
 * These need the host's network, one its files too. A provider that trusts no tenant refuses them, and is right to: under
 * baseline each must fail, and one that passes is an alarm.
 */
const hostAccess: readonly RegExp[] = [
  /^\[sig-network\] Networking Granular Checks: Pods should function for node-pod communication: (http|udp) /,
  /^\[sig-node\] KubeletManagedEtcHosts should test kubelet managed \/etc\/hosts file /,
];

export const needsHostAccess = (name: string): boolean => hostAccess.some((one) => one.test(`${name} `));
