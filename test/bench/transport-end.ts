/** One end of the transport bench in a process of its own: the gateway's, or a relay. Told what to be by its parent. */
import { verifyRegistration } from '../../operator/adapters/chain/link-proofs.ts';
import { audienceOf } from '../../operator/api/link.ts';
import { startRelay } from '../../operator/relay/relay.ts';
import { systemTiming } from '../../operator/wire/timing.ts';
import { endServer, isLinked, offer, publicUrl, silent } from '../conformance/transport/ways.ts';
import { authority } from '../unit/adapters/provider/tls.ts';

export type Order =
  | { readonly be: 'gateway' | 'relay' }
  | { readonly offerAt: { readonly url: string; readonly ca: string } }
  | { readonly cpu: true };
export type Report =
  | { readonly up: { readonly port: number; readonly ca: string } }
  | { readonly linked: true }
  | { readonly cpuSeconds: number };

const tell = (report: Report) => process.send!(report);
const ca = await authority('ca');
const end = await endServer(ca);

process.on('message', async (order: Order) => {
  if ('cpu' in order) {
    const { user, system } = process.cpuUsage();
    return tell({ cpuSeconds: (user + system) / 1e6 });
  }
  if ('offerAt' in order) {
    const { url, ca: trusted } = order.offerAt;
    await isLinked(offer(end, { url, ca: trusted, audienceUrl: publicUrl }));
    return tell({ linked: true });
  }
  if (order.be === 'gateway') {
    await new Promise<void>((resolve) => end.server.listen(0, '127.0.0.1', resolve));
    return tell({ up: { port: (end.server.address() as { port: number }).port, ca: ca.pem } });
  }
  const pair = await ca.issue([{ CN: ['relay'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
  const relay = await startRelay({
    host: '127.0.0.1',
    port: 0,
    tls: pair,
    audiences: new Set([audienceOf(publicUrl)]),
    verify: verifyRegistration,
    limits: { streamsPerSecond: 10_000 },
    clock: systemTiming,
    now: () => new Date(),
    log: silent,
  });
  tell({ up: { port: relay.port, ca: ca.pem } });
});
process.on('disconnect', () => process.exit(0));
