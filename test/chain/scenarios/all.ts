import type { ChainScenario } from '../scenario.ts';
import { crashes } from './crashes.ts';
import { gas } from './gas.ts';
import { lies } from './lies.ts';
import { load } from './load.ts';
import { nonces } from './nonces.ts';
import { outages } from './outages.ts';
import { parties } from './parties.ts';
import { rails } from './rails.ts';
import { reorgs } from './reorgs.ts';
import { sponsor } from './sponsor.ts';

export const chainScenarios: readonly ChainScenario[] = [
  ...crashes,
  ...outages,
  ...lies,
  ...reorgs,
  ...nonces,
  ...gas,
  ...rails,
  ...sponsor,
  ...parties,
  ...load,
];
