/** The RBAC objects that give accounts their rights. */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import { listenerInTenantRole, tenantRole } from '../allocation/rights.ts';
import {
  operatorInNamespaceRoleName,
  operatorInNamespaceRules,
  operatorTokensRoleName,
  operatorTokensRules,
} from './consumer.ts';
import { type Account, type Rule, rbac } from './rule.ts';

export interface RbacObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string; readonly labels?: Record<string, string> };
  readonly [field: string]: unknown;
}

/** Roles that nothing binds at first: processes bind them where and while they are needed. */
export const sharedRoles: Readonly<Record<Account['side'], readonly RbacObject[]>> = {
  consumer: [
    role('ClusterRole', { name: operatorInNamespaceRoleName }, operatorInNamespaceRules),
    role('ClusterRole', { name: operatorTokensRoleName }, operatorTokensRules),
  ],
  provider: [tenantRole, listenerInTenantRole],
};

/**
 * ServiceAccount, roles and bindings of one account. `taking`: the accounts of the parts that run in the same process, whose
 * rights this one has too.
 */
export function rbacOf(account: Account, taking: readonly Account[] = []): readonly RbacObject[] {
  const name = account.serviceAccount;
  const all = [account, ...taking];
  const cluster = all.flatMap((one) => one.cluster);
  const within = new Map<string, Rule[]>();
  for (const { namespace, rules } of all.flatMap((one) => one.within))
    within.set(namespace, [...(within.get(namespace) ?? []), ...rules]);
  const subjects = [{ kind: 'ServiceAccount', name, namespace: account.namespace }];
  const ref = (kind: string) => ({ apiGroup: rbac, kind, name });
  return [
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { ...meta({ name, namespace: account.namespace }) } },
    ...(cluster.length > 0
      ? [
          role('ClusterRole', { name }, cluster),
          {
            apiVersion: `${rbac}/v1`,
            kind: 'ClusterRoleBinding',
            metadata: meta({ name }),
            roleRef: ref('ClusterRole'),
            subjects,
          },
        ]
      : []),
    ...[...within].flatMap(([namespace, rules]) => [
      role('Role', { name, namespace }, rules),
      {
        apiVersion: `${rbac}/v1`,
        kind: 'RoleBinding',
        metadata: meta({ name, namespace }),
        roleRef: ref('Role'),
        subjects,
      },
    ]),
  ];
}

function role(kind: 'Role' | 'ClusterRole', named: { name: string; namespace?: string }, rules: readonly Rule[]) {
  return { apiVersion: `${rbac}/v1`, kind, metadata: meta(named), rules };
}

function meta(named: { name: string; namespace?: string }) {
  return { ...named, labels: { [ownLabels.managedBy]: managedBy } };
}
