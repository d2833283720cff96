import { afterEach, describe, expect, it } from 'vitest';
import { connectCluster } from '../../../operator/engine/cluster.ts';
import { createInformer } from '../../../operator/engine/informer.ts';
import { type Change, type KubeObject, type Log, resources } from '../../../operator/engine/types.ts';
import { manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';
import { type MisbehavingServer, misbehavingServer } from '../../support/misbehaving-server.ts';

interface Pod extends KubeObject {
  spec?: { nodeName?: string };
  status?: { phase?: string };
}
const pod = (name: string, nodeName?: string): Pod => ({ metadata: { name, namespace: 'a' }, spec: { nodeName } });
const key = (name: string) => ({ namespace: 'a', name });

function recordingLog() {
  const lines: { level: string; fields: Record<string, unknown>; message: string }[] = [];
  const at = (level: string) => (fields: object, message: string) =>
    void lines.push({ level, fields: fields as Record<string, unknown>, message });
  const log: Log = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error'), child: () => log };
  return { log, lines };
}

const stops: AbortController[] = [];
afterEach(() => {
  for (const stop of stops.splice(0)) stop.abort(new Error('the test is over'));
});

function start(options: Partial<Parameters<typeof createInformer<Pod>>[0]> = {}, given?: FakeCluster) {
  const clock = manualClock();
  const cluster = given ?? fakeCluster({ clock });
  const { log, lines } = recordingLog();
  const informer = createInformer<Pod>({
    cluster,
    resource: resources.pods,
    clock,
    log,
    random: () => 0.5,
    ...options,
  });
  const heard: string[] = [];
  informer.onChange(({ type, object, old }) => {
    heard.push(
      `${type} ${object.metadata.name}${type === 'updated' ? ` ${old?.status?.phase}>${object.status?.phase}` : ''}`,
    );
  });
  const stop = new AbortController();
  stops.push(stop);
  const ended = informer.run(stop.signal);
  return { clock, cluster, informer, heard, stop, ended, lines };
}

const setPhase = (cluster: FakeCluster, name: string, phase: string) =>
  cluster.change<Pod>(resources.pods, key(name), (p) => {
    p.status = { phase };
  });
const lists = (cluster: FakeCluster) => cluster.requests.filter((r) => !r.watch).length;

describe('an informer', () => {
  it('knows what is there, and hears what changes', async () => {
    const cluster = fakeCluster();
    cluster.seed(resources.pods, pod('one'));
    const { clock, informer, heard } = start({}, cluster);
    expect(informer.synced).toBe(false);
    await informer.waitForSync();
    expect(informer.list().map((p) => p.metadata.name)).toEqual(['one']);
    await cluster.create(resources.pods, pod('two'));
    setPhase(cluster, 'one', 'Running');
    await cluster.delete(resources.pods, key('two'));
    await clock.settle();
    expect(heard).toEqual(['added one', 'added two', 'updated one Pending>Running', 'deleted two']);
    expect(informer.get(key('one'))?.status?.phase).toBe('Running');
    expect(informer.get(key('two'))).toBeUndefined();
    expect(cluster.openWatches).toBe(1);
  });

  it('keeps indexes true', async () => {
    const { clock, cluster, informer } = start({ indexes: { node: (p) => [p.spec?.nodeName ?? ''] } });
    await informer.waitForSync();
    cluster.seed(resources.pods, pod('one', 'n1'), pod('two', 'n1'), pod('three', 'n2'));
    await clock.settle();
    const on = (node: string) => informer.byIndex('node', node).map((p) => p.metadata.name);
    expect([on('n1'), on('n2')]).toEqual([['one', 'two'], ['three']]);
    cluster.change<Pod>(resources.pods, key('one'), (p) => {
      p.spec = { nodeName: 'n2' };
    });
    cluster.erase(resources.pods, key('three'));
    await clock.settle();
    expect([on('n1'), on('n2'), on('n3')]).toEqual([['two'], ['one'], []]);
    expect(() => informer.byIndex('colour', 'red')).toThrow('no index named colour');
  });

  it('keeps only what the trimming leaves', async () => {
    const { clock, cluster, informer } = start({
      trim: (p) => ({
        metadata: {
          name: p.metadata.name,
          namespace: 'a',
          uid: p.metadata.uid,
          resourceVersion: p.metadata.resourceVersion,
        },
      }),
    });
    const metadata = { ...pod('x').metadata, managedFields: [{ manager: 'kubectl' }] };
    cluster.seed(resources.pods, { ...pod('x'), metadata } as Pod);
    await informer.waitForSync();
    cluster.seed(resources.pods, pod('two', 'n'));
    await clock.settle();
    for (const object of informer.list()) expect(Object.keys(object)).toEqual(['metadata']);
    expect(informer.list()).toHaveLength(2);
  });

  it('tells who comes late what is there already', async () => {
    const { informer, cluster, clock } = start();
    cluster.seed(resources.pods, pod('one'));
    await clock.settle();
    const heard: string[] = [];
    const stop = informer.onChange((c) => void heard.push(`${c.type} ${c.object.metadata.name}`));
    expect(heard).toEqual(['added one']);
    stop();
    cluster.seed(resources.pods, pod('two'));
    await clock.settle();
    expect(heard).toEqual(['added one']);
  });

  it('protects handlers from one another', async () => {
    const { informer, cluster, clock, heard, lines } = start();
    informer.onChange(() => {
      throw new Error('mine is broken');
    });
    informer.onChange((async () => Promise.reject(new Error('mine too'))) as () => void);
    const after: string[] = [];
    informer.onChange((c: Change<Pod>) => void after.push(c.object.metadata.name));
    await informer.waitForSync();
    cluster.seed(resources.pods, pod('one'), pod('two'));
    await clock.settle();
    expect(heard).toEqual(['added one', 'added two']);
    expect(after).toEqual(['one', 'two']);
    expect(lines.filter((l) => l.level === 'error')).toHaveLength(4);
  });

  it('goes on from where a watch ended, without listing again', async () => {
    const { clock, cluster, informer, heard } = start();
    await informer.waitForSync();
    await clock.advance(10_000);
    cluster.endWatches('closed');
    cluster.seed(resources.pods, pod('meanwhile'));
    await clock.advance(100);
    cluster.endWatches('broken');
    cluster.seed(resources.pods, pod('again'));
    await clock.advance(2000);
    expect(heard).toEqual(['added meanwhile', 'added again']);
    expect(lists(cluster)).toBe(1);
    expect(cluster.openWatches).toBe(1);
  });

  it('sees after a 410 what was deleted, replaced and made while it was away', async () => {
    const { clock, cluster, informer, heard } = start();
    cluster.seed(resources.pods, pod('stays'), pod('goes'), pod('replaced'), pod('changes'));
    await clock.settle();
    expect(informer.list()).toHaveLength(4);
    heard.length = 0;
    cluster.setUnreachable(true);
    cluster.erase(resources.pods, key('goes'));
    cluster.erase(resources.pods, key('replaced'));
    cluster.seed(resources.pods, pod('replaced'), pod('made'));
    setPhase(cluster, 'changes', 'Running');
    cluster.expireHistory();
    await clock.advance(2000);
    cluster.setUnreachable(false);
    await clock.advance(30_000);
    expect(heard.sort()).toEqual(
      ['added made', 'added replaced', 'deleted goes', 'deleted replaced', 'updated changes Pending>Running'].sort(),
    );
    expect(lists(cluster)).toBe(2);
  });

  it('survives every failure of the list, later each time, and tells about it', async () => {
    const clock = manualClock();
    const cluster = fakeCluster({ clock });
    for (const fail of [500, 403, 'unreachable', 429] as const)
      cluster.failNext({ resource: 'pods', fail, times: fail === 'unreachable' ? 3 : 1 });
    const { informer, lines, clock: mine } = start({}, cluster);
    await mine.advance(60_000);
    expect(informer.synced).toBe(true);
    expect(lines.filter((l) => l.level === 'warn').length).toBeGreaterThan(0);
    expect(lists(cluster)).toBeGreaterThanOrEqual(5);
  });

  it('does not hammer a server that refuses', async () => {
    const { clock, cluster } = start();
    await clock.settle();
    cluster.endWatches();
    cluster.failNext({ resource: 'pods', fail: 500, times: 1_000_000 });
    const before = cluster.requests.length;
    await clock.advance(600_000);
    expect(cluster.requests.length - before).toBeLessThan(40);
    expect(cluster.requests.length - before).toBeGreaterThan(10);
  });

  it('does not hammer a server that closes every watch at once', async () => {
    const { clock, cluster } = start();
    cluster.intercept((r) => (r.watch ? { code: 200, body: '' } : undefined));
    await clock.advance(600_000);
    expect(cluster.requests.length).toBeLessThan(60);
  });

  it('does not hammer a server where every list is too old already', async () => {
    const { clock, cluster } = start();
    cluster.intercept((r) =>
      r.watch ? { code: 410, body: { kind: 'Status', code: 410, reason: 'Expired' } } : undefined,
    );
    await clock.advance(600_000);
    expect(cluster.requests.length).toBeLessThan(100);
  });

  it('lists again when watching goes on failing', async () => {
    const { clock, cluster, informer, heard } = start();
    await informer.waitForSync();
    const stop = cluster.intercept((r) => (r.watch ? { code: 500, body: {} } : undefined));
    cluster.endWatches();
    cluster.seed(resources.pods, pod('unseen'));
    await clock.advance(60_000);
    expect(heard).toEqual(['added unseen']);
    stop();
  });

  it('leaves a connection on which nothing comes any more', async () => {
    const { clock, cluster, informer, heard } = start({ quietSeconds: 90 });
    await informer.waitForSync();
    await clock.advance(1000);
    cluster.setUnreachable(true, 'silent');
    cluster.setUnreachable(false); // the network is back, but this watch will never say so
    cluster.seed(resources.pods, pod('unheard'));
    await clock.advance(80_000);
    expect(heard).toEqual([]);
    await clock.advance(11_000);
    expect(heard).toEqual(['added unheard']);
    expect(lists(cluster)).toBe(1);
  });

  it('takes bookmarks as a sign of life, and as a place to go on from', async () => {
    const { clock, cluster, informer } = start({ quietSeconds: 90 });
    await informer.waitForSync();
    for (let minute = 0; minute < 10; minute++) {
      await clock.advance(60_000);
      expect(informer.staleSeconds).toBeCloseTo(60, 0);
      cluster.seed(resources.secrets, { metadata: { name: `other-${minute}`, namespace: 'a' } });
      cluster.sendBookmarks();
      await clock.settle();
      expect(informer.staleSeconds).toBe(0);
    }
    expect(cluster.requests).toHaveLength(2); // one list, one watch
    cluster.endWatches();
    await clock.settle();
    const last = cluster.requests.at(-1)!;
    expect(last.query.get('resourceVersion')).toBe(cluster.revision);
  });

  it('stops when told to, and lets nobody wait for ever', async () => {
    const unreachable = fakeCluster();
    unreachable.setUnreachable(true);
    const { clock, cluster, informer, stop, ended } = start({}, unreachable);
    const waiting = informer.waitForSync().catch((error) => error.message);
    await clock.settle();
    stop.abort(new Error('over'));
    await ended;
    expect(await waiting).toBe('over');
    await expect(informer.waitForSync()).rejects.toThrow('over');
    expect(cluster.openWatches).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('an informer over a bad network', () => {
  const servers: MisbehavingServer[] = [];
  afterEach(async () => {
    for (const server of servers.splice(0)) await server.close();
  });
  const listed = (version: string, ...items: object[]) =>
    JSON.stringify({ metadata: { resourceVersion: version }, items });
  const podAt = (name: string, resourceVersion: string) => ({
    metadata: { name, namespace: 'a', uid: name, resourceVersion },
  });
  const event = (type: string, object: object) => `${JSON.stringify({ type, object })}\n`;

  async function overHttp(
    ...watches: ((write: (text: string | Buffer) => void, end: () => void, reset: () => void) => void)[]
  ) {
    const server = await misbehavingServer();
    servers.push(server);
    const versions: (string | null)[] = [];
    server.handle((request, response) => {
      const { searchParams } = new URL(request.url!, 'http://x');
      if (searchParams.get('watch') !== 'true') return void response.end(listed('10', podAt('one', '5')));
      versions.push(searchParams.get('resourceVersion'));
      response.writeHead(200).flushHeaders();
      watches.shift()?.(
        (text) => void response.write(text),
        () => response.end(),
        () => response.socket?.destroy(),
      );
    });
    const informer = createInformer<Pod>({
      cluster: connectCluster({ name: 'bad', kubeconfig: server.kubeconfig }),
      resource: resources.pods,
      backoff: { baseSeconds: 0.01, maxSeconds: 0.05 },
      quietSeconds: 0.3,
    });
    const heard: string[] = [];
    informer.onChange(
      (c) => void heard.push(`${c.type} ${c.object.metadata.name}@${c.object.metadata.resourceVersion}`),
    );
    const stop = new AbortController();
    stops.push(stop);
    void informer.run(stop.signal);
    const until = async (condition: () => boolean) => {
      const deadline = Date.now() + 5000;
      while (!condition()) {
        if (Date.now() > deadline) throw new Error(`waited in vain; heard ${JSON.stringify({ heard, versions })}`);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    };
    return { server, informer, heard, versions, until };
  }

  it('puts together events that arrive in pieces', async () => {
    const text = event('ADDED', { ...podAt('zwölf', '11') }) + event('DELETED', podAt('one', '12'));
    const bytes = Buffer.from(text);
    const { heard, until } = await overHttp((write) => {
      let at = 0;
      const more = () => {
        if (at >= bytes.length) return;
        write(bytes.subarray(at, at + 7));
        at += 7;
        setTimeout(more, 1);
      };
      more();
    });
    await until(() => heard.length === 3);
    expect(heard).toEqual(['added one@5', 'added zwölf@11', 'deleted one@12']);
  });

  it('drops half an event and asks for it again', async () => {
    const { heard, versions, until } = await overHttp(
      (write, _, reset) => {
        write(event('ADDED', podAt('two', '11')));
        write(event('ADDED', podAt('three', '12')).slice(0, 30));
        setTimeout(reset, 20);
      },
      (write) => write(event('ADDED', podAt('three', '12'))),
    );
    await until(() => heard.length === 3);
    expect(heard).toEqual(['added one@5', 'added two@11', 'added three@12']);
    expect(versions).toEqual(['10', '11']);
  });

  it('does not trust a line that is not JSON, and loses nothing by it', async () => {
    const { heard, versions, until } = await overHttp(
      (write) =>
        write(`${event('ADDED', podAt('two', '11'))}{"type":"ADDED","obj\n${event('ADDED', podAt('four', '13'))}`),
      (write) => write(event('ADDED', podAt('three', '12')) + event('ADDED', podAt('four', '13'))),
    );
    await until(() => heard.length === 4);
    expect(heard).toEqual(['added one@5', 'added two@11', 'added three@12', 'added four@13']);
    expect(versions).toEqual(['10', '11']);
  });

  it('goes on after an ERROR event, and lists again after a 410 in the stream', async () => {
    const { heard, versions, server, until } = await overHttp(
      (write) => write(event('ERROR', { kind: 'Status', code: 500, reason: 'InternalError', message: 'etcd' })),
      (write) => write(event('ERROR', { kind: 'Status', code: 410, reason: 'Expired', message: 'too old' })),
      (write) => write(event('ADDED', podAt('two', '11'))),
    );
    await until(() => heard.length === 2);
    expect(heard).toEqual(['added one@5', 'added two@11']);
    expect(versions).toEqual(['10', '10', '10']);
    expect(server.requests.filter((r) => !r.url?.includes('watch'))).toHaveLength(2);
  });

  it('leaves a half-open connection by itself', async () => {
    const { heard, versions, until } = await overHttp(
      () => undefined,
      (write) => write(event('ADDED', podAt('two', '11'))),
    );
    await until(() => heard.length === 2);
    expect(versions).toEqual(['10', '10']);
  });

  it('hears of every change, exactly once, through a storm of resets', async () => {
    const total = 200;
    let version = 10;
    const storm = (write: (text: string | Buffer) => void, end: () => void, reset: () => void) => {
      const many = 1 + Math.floor(Math.random() * 8);
      for (let n = 0; n < many && version < 10 + total; n++) {
        version++;
        write(event('ADDED', podAt(`p${version}`, String(version))));
      }
      if (version < 10 + total) setTimeout(Math.random() < 0.5 ? end : reset, 2);
    };
    const { heard, versions, server, until } = await overHttp();
    // What a reset swallowed is sent again from the version that the client names.
    server.handle((request, response) => {
      const { searchParams } = new URL(request.url!, 'http://x');
      if (searchParams.get('watch') !== 'true') return void response.end(listed('10', podAt('one', '5')));
      version = Number(searchParams.get('resourceVersion'));
      versions.push(String(version));
      response.writeHead(200).flushHeaders();
      storm(
        (text) => void response.write(text),
        () => response.end(),
        () => response.socket?.destroy(),
      );
    });
    await until(() => heard.length >= total + 1);
    expect(heard).toEqual(['added one@5', ...Array.from({ length: total }, (_, n) => `added p${n + 11}@${n + 11}`)]);
    expect(versions.length).toBeGreaterThan(10);
  });
});
