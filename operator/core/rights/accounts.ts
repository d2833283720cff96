/** All accounts. */
import { consumerAccounts } from './consumer.ts';
import { providerAccounts } from './provider.ts';
import type { Account, ProcessName } from './rule.ts';

export const accounts: readonly Account[] = [...consumerAccounts, ...providerAccounts];

export const accountOf = (process: ProcessName): Account => {
  const found = accounts.find((one) => one.process === process);
  if (!found) throw new Error(`there is no account for ${process}`);
  return found;
};
