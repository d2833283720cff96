/** SIGKILLs of anything at any moment of two leases' lives, drawn from a seed. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Target } from '../lab.ts';
import { seeded } from '../random.ts';
import { fairBill, fresh, type Scenario } from '../scenario.ts';

const targets: readonly Target[] = [
  'operator',
  'gateway',
  'anvil',
  'consumer/kube-apiserver',
  'provider/kube-apiserver',
  'consumer/etcd',
  'provider/etcd',
  'consumer/kube-controller-manager',
  'provider/kube-controller-manager',
  'consumer/kube-scheduler',
];

export const random = (seed: number): Scenario => ({
  name: `random-kills-${seed}`,
  broke: `six SIGKILLs at random moments of a lease's life, seed ${seed}`,
  async run(lab, clock) {
    const draw = seeded(seed);
    const lease = await lab.begin(fresh('random'));
    const killed: string[] = [];
    for (let i = 0; i < 6; i++) {
      await sleep(draw.between(200, 5000));
      const what = draw.of(targets);
      await lab.kill(what);
      killed.push(what);
      await sleep(draw.between(100, 2500));
      await lab.revive(what);
      // Half-way through, the lease begins to end.
      if (i === 3) {
        await lease.ready(150);
        await lease.delete();
      }
    }
    clock.mended();
    await lease.gone(180);
    await clock.wanted();
    clock.note(killed.map((what) => what.replace('kube-', '')).join(' '));
    await fairBill(lab, lease, 60);
  },
});
