import type { Attack } from '../attack.ts';
import { stolen } from './accounts.ts';
import { consumer } from './consumer.ts';
import { passerBy } from './passer-by.ts';
import { pods } from './pods.ts';
import { provider } from './provider.ts';
import { relay } from './relay.ts';

export const attacks: readonly Attack[] = [...passerBy, ...consumer, ...pods, ...stolen, ...relay, ...provider];
