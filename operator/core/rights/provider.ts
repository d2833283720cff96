/** What each process of the provider's side may do in its cluster: see core/allocation/rights.ts, which has the reasons. */
import {
  listenerHomeRules,
  listenerRules,
  provisionerHomeRules,
  provisionerPrivateRules,
  provisionerRules,
} from '../allocation/rights.ts';
import type { Account } from './rule.ts';

export const gatewayNamespace = 'gpulease-system';
export const provisionerNamespace = 'gpulease-provisioner';

const gateway: Account = {
  side: 'provider',
  process: 'gateway',
  serviceAccount: 'gpulease-gateway',
  namespace: gatewayNamespace,
  cluster: listenerRules,
  within: [{ namespace: gatewayNamespace, rules: listenerHomeRules }],
  holds:
    "the provider's key, for quotes and releases; the key of the tokens that consumers get; its TLS key; lease records",
  ifStolen: {
    could: [
      'act as any tenant inside its namespace: its pods, Secrets and Services, its network policy, and the quota of its objects',
      'sign quotes at any price, and releases that give up what consumers owe; change lease records',
      'with the key, not the account: send transactions as the provider. What is earned goes to the payee (--payee)',
      'read nodes, pods and offers of the cluster',
    ],
    couldNot: [
      'let a tenant have more than was bought: that quota is the provisioner’s',
      'make a tenant, or set GPUs aside, without an escrow on chain: the provisioner believes no record',
      'make a tenant trusted, or raise its storage: that is decided by the provisioner’s flags',
      'have a GPU sold again while its tenant is there: the provisioner looks at namespace, pods and kubelet, not at the record',
      'touch namespaces that are not of tenants, nodes, roles, admission policies, or stored transactions',
    ],
  },
};

const provisioner: Account = {
  side: 'provider',
  process: 'provisioner',
  serviceAccount: 'gpulease-provisioner',
  namespace: provisionerNamespace,
  cluster: provisionerRules,
  within: [
    { namespace: gatewayNamespace, rules: provisionerHomeRules },
    { namespace: provisionerNamespace, rules: provisionerPrivateRules },
  ],
  holds: "the provider's key, for settlements; transactions that are signed and not mined",
  ifStolen: {
    could: [
      'make and delete namespaces, also those of others, and delete pods',
      'bind the two roles of tenants to any account in any namespace: their pods, Secrets, exec',
      'taint nodes, and write admission policies that refuse what others do',
      'with the key: settle and close escrows. What is earned goes to the payee (--payee)',
    ],
    couldNot: ['be reached: it listens to nobody', 'make roles of its own, or bind others than those of tenants'],
  },
};

export const providerAccounts: readonly Account[] = [gateway, provisioner];
