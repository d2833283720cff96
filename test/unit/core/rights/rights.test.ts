/** What no account may hold, whatever is added to its list. */
import { describe, expect, test } from 'vitest';
import { tenantLimits } from '../../../../operator/core/allocation/rights.ts';
import { tenantObjects } from '../../../../operator/core/allocation/tenant.ts';
import { accounts } from '../../../../operator/core/rights/accounts.ts';
import { guards } from '../../../../operator/core/rights/guards.ts';
import { rbacOf, sharedRoles } from '../../../../operator/core/rights/rbac.ts';
import type { Account, Rule } from '../../../../operator/core/rights/rule.ts';
import { escrowAddress, leaseId } from '../../../support/builders.ts';

const allows = (rules: readonly Rule[], resource: string, verb?: string) =>
  rules.filter((rule) => rule.resources.includes(resource) && (verb === undefined || rule.verbs.includes(verb)));
const everywhere = ({ cluster }: Account) => cluster;

describe.each(accounts.map((account) => [account.process, account] as const))('%s', (name, account) => {
  const all = [...account.cluster, ...account.within.flatMap(({ rules }) => rules)];

  test('names its rights one by one', () => {
    for (const { apiGroups, resources, verbs } of all)
      for (const word of [...apiGroups, ...resources, ...verbs]) expect(word).not.toMatch(/\*/);
  });

  test('reads no Secrets but in namespaces that are named', () => {
    expect(allows(everywhere(account), 'secrets')).toEqual([]);
  });

  test('makes no pods, runs nothing in them, and impersonates nobody', () => {
    expect(allows(all, 'pods', 'create')).toEqual([]);
    for (const resource of ['pods/exec', 'pods/attach', 'pods/portforward', 'pods/ephemeralcontainers', 'nodes/proxy'])
      expect(allows(all, resource)).toEqual([]);
    for (const { verbs } of all) for (const verb of ['impersonate', 'escalate']) expect(verbs).not.toContain(verb);
  });

  test('makes tokens of no account of the cluster at large, and binds named roles alone', () => {
    expect(allows(everywhere(account), 'serviceaccounts/token')).toEqual([]);
    for (const { resourceNames } of all.filter(({ verbs }) => verbs.includes('bind')))
      expect(resourceNames?.length).toBeGreaterThan(0);
    expect(allows(all, 'clusterroles', 'create')).toEqual([]);
  });

  test('writes no policy that changes what others write', () => {
    for (const verb of ['create', 'update', 'patch'])
      expect(allows(all, 'mutatingadmissionpolicies', verb)).toEqual([]);
  });

  test('says what a thief could and could not do', () => {
    expect(account.ifStolen.could.length).toBeGreaterThan(0);
    expect(account.ifStolen.couldNot.length).toBeGreaterThan(0);
    expect(name).toBe(account.process);
  });
});

test('no two accounts that are to be apart list Secrets in one namespace', () => {
  const lists = (account: Account) =>
    account.within.filter(({ rules }) => allows(rules, 'secrets', 'list').length > 0).map(({ namespace }) => namespace);
  for (const account of accounts)
    for (const other of accounts) {
      if (account === other || account.side !== other.side) continue;
      const secrets = other.within.filter(({ rules }) => allows(rules, 'secrets', 'create').length > 0);
      for (const { namespace } of secrets)
        if (lists(account).includes(namespace))
          // Gateway and provisioner share the records of leases, and nothing else.
          expect([account.side, namespace]).toEqual(['provider', 'gpulease-system']);
    }
});

test('one process that does all has the rights of all its parts', () => {
  const [operator, wallet, approver] = accounts;
  const objects = rbacOf(operator!, [wallet!, approver!]);
  const role = objects.find(({ kind }) => kind === 'ClusterRole') as unknown as { rules: Rule[] };
  expect(role.rules).toEqual([...operator!.cluster, ...wallet!.cluster, ...approver!.cluster]);
  const own = objects.filter(({ kind, metadata }) => kind === 'Role' && metadata.namespace === operator!.namespace);
  expect(own).toHaveLength(1);
  expect(objects.filter(({ kind }) => kind === 'ServiceAccount')).toHaveLength(1);
});

test('the roles that processes bind are there, and the guards know the accounts', () => {
  const names = Object.values(sharedRoles).flatMap((roles) => roles.map(({ metadata }) => metadata.name));
  const bound = accounts.flatMap(({ cluster }) =>
    cluster.filter(({ verbs }) => verbs.includes('bind')).flatMap(({ resourceNames }) => resourceNames ?? []),
  );
  expect(names.sort()).toEqual(bound.sort());
  const text = JSON.stringify(guards({ operator: 'system:serviceaccount:a:b', approver: 'system:serviceaccount:a:c' }));
  expect(text).toContain("request.userInfo.username == 'system:serviceaccount:a:b'");
  expect(text).toContain("s.name == 'b' && s.namespace == 'a'");
});

test('quota and network policy of a tenant are called as the rights of the gateway name them', () => {
  const room = { gpus: 1, cpuMillis: 1, memoryBytes: 1, ephemeralBytes: 1, pods: 1 };
  const account = { namespace: 'n', name: 'g' };
  const lease = { leaseId, chainId: 1, escrow: escrowAddress, room, nodeName: 'node-1' };
  const objects = tenantObjects(lease, { deniedCidrs: [], gatewayAccount: account });
  for (const kind of ['ResourceQuota', 'NetworkPolicy'])
    expect(objects.filter(({ object }) => object.kind === kind).map(({ object }) => object.metadata.name)).toContain(
      tenantLimits,
    );
  const bound = objects.filter(({ object }) => object.kind === 'RoleBinding').map(({ object }) => object.subjects);
  expect(bound).toContainEqual([{ kind: 'ServiceAccount', ...account }]);
  const alone = tenantObjects(lease, { deniedCidrs: [] });
  expect(JSON.stringify(alone)).not.toContain('in-tenant');
});
