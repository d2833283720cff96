/** Rights in a cluster, as RBAC writes them. */
export const rbac = 'rbac.authorization.k8s.io';

export interface Rule {
  readonly apiGroups: readonly string[];
  readonly resources: readonly string[];
  readonly verbs: readonly string[];
  readonly resourceNames?: readonly string[];
}

/** An account that a process runs as, what it may do, and what that means in other hands. */
export interface Account {
  readonly side: 'consumer' | 'provider';
  /** Command that runs as it: `node operator/cmd/NAME.ts`. */
  readonly process: ProcessName;
  readonly serviceAccount: string;
  readonly namespace: string;
  /** In the whole cluster. */
  readonly cluster: readonly Rule[];
  /** In single namespaces. */
  readonly within: readonly { readonly namespace: string; readonly rules: readonly Rule[] }[];
  /** Keys and secrets that whoever has the account, or the process, has as well. */
  readonly holds: string;
  readonly ifStolen: {
    readonly could: readonly string[];
    readonly couldNot: readonly string[];
  };
}

export type ProcessName = 'operator' | 'wallet' | 'approver' | 'gateway' | 'provisioner';

/** As the API server names it. */
export const userOf = ({ namespace, serviceAccount }: Pick<Account, 'namespace' | 'serviceAccount'>): string =>
  `system:serviceaccount:${namespace}:${serviceAccount}`;
