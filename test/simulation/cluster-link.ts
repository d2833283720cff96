/** A process' own line to an API server in memory. Watches are the API server's, line by line. */
import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import { keyOf, keyText } from '../../operator/engine/paths.ts';
import type { Cluster, KubeObject, Resource } from '../../operator/engine/types.ts';
import type { FakeCluster } from '../support/fake-cluster.ts';
import { matchesFields, matchesLabels } from '../support/selectors.ts';
import { answerOf, type Lines, type Network, type Place } from './network.ts';
import type { Party } from './timeline.ts';

export interface ClusterLink {
  readonly network: Network;
  readonly party: Party;
  readonly place: Place;
  readonly fake: FakeCluster;
  /** Told of each write that the API server took. */
  readonly wrote: (party: Party, what: string, resource: Resource) => void;
}

export function clusterLink({ network, party, place, fake, wrote }: ClusterLink): Cluster {
  const write = <T>(what: string, resource: Resource, serve: () => Promise<T>, signal?: AbortSignal) =>
    network.call(
      party,
      place,
      what,
      async () => {
        const before = fake.revision;
        const answer = await serve();
        if (fake.revision !== before) wrote(party, what, resource);
        return answer;
      },
      signal,
    );
  const nameOf = (resource: Resource, { name }: { name: string }) => `${resource.plural}/${name}`;
  return {
    name: fake.name,
    server: fake.server,
    get: (resource, key, signal) =>
      network.call(party, place, `get ${nameOf(resource, key)}`, () => fake.object(resource, key), signal),
    list: <T extends KubeObject>(
      resource: Resource,
      options: Parameters<Cluster['list']>[1] = {},
      signal?: AbortSignal,
    ) =>
      network.call(
        party,
        place,
        `list ${resource.plural}`,
        () => {
          const items = fake
            .objects<KubeObject>(resource)
            .filter(
              (one) =>
                (options.namespace === undefined || one.metadata.namespace === options.namespace) &&
                matchesLabels(one, options.labelSelector ?? '') &&
                matchesFields(one, options.fieldSelector ?? ''),
            )
            .sort((a, b) => (keyText(keyOf(a)) < keyText(keyOf(b)) ? -1 : 1));
          return { items: (options.trim ? items.map(options.trim) : items) as T[], resourceVersion: fake.revision };
        },
        signal,
      ),
    create: (resource, object, signal) =>
      write(`create ${nameOf(resource, object.metadata)}`, resource, () => fake.create(resource, object), signal),
    replace: (resource, object, options, signal) =>
      write(
        `replace ${nameOf(resource, object.metadata)}`,
        resource,
        () => fake.replace(resource, object, options),
        signal,
      ),
    apply: (resource, object, options, signal) =>
      write(
        `apply ${nameOf(resource, object.metadata)} ${options.subresource ?? ''}`,
        resource,
        () => fake.apply(resource, object, options),
        signal,
      ),
    patch: (resource, key, patch, options, signal) =>
      write(
        `patch ${nameOf(resource, key)} ${options?.subresource ?? ''}`,
        resource,
        () => fake.patch(resource, key, patch, options),
        signal,
      ),
    delete: (resource, key, options, signal) =>
      write(`delete ${nameOf(resource, key)}`, resource, () => fake.delete(resource, key, options), signal),
    createSubresource: (resource, key, subresource, body, signal) =>
      write(
        `${subresource} of ${nameOf(resource, key)}`,
        resource,
        () => fake.createSubresource(resource, key, subresource, body),
        signal,
      ),
    async raw(request, options, signal) {
      const [path = ''] = request.path.split('?');
      const what = `${request.method} ${path}`;
      const watch = /[?&]watch=true/.test(request.path);
      const answer = await network.call(
        party,
        place,
        watch ? `watch ${path}` : what,
        async () => {
          const before = fake.revision;
          const response = await fake.raw(request, options);
          const { statusCode = 0 } = response;
          if (watch && statusCode === 200) return { statusCode, lines: linesOf(response) };
          const text = await textOf(response);
          if (fake.revision !== before) wrote(party, what, { plural: path } as Resource);
          return { statusCode, text };
        },
        signal,
      );
      if (answer.lines !== undefined) return answerOf(200, network.stream(party, place, path, answer.lines, signal));
      const body = new PassThrough();
      body.end(answer.text);
      return answerOf(answer.statusCode, body);
    },
    upgrade: () => Promise.reject(new TypeError('no streams of pods in a simulation')),
  };
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

/** Nothing of it is lost before somebody listens. */
export function linesOf(response: IncomingMessage): Lines {
  const waiting: string[] = [];
  let ended: boolean | undefined;
  let onLine: ((line: string) => void) | undefined;
  let onEnd: ((broken: boolean) => void) | undefined;
  const end = (broken: boolean) => {
    if (ended !== undefined) return;
    ended = broken;
    onEnd?.(broken);
  };
  response.on('data', (chunk: Buffer) => {
    for (const line of chunk.toString('utf8').split('\n')) {
      if (line === '') continue;
      if (onLine) onLine(`${line}\n`);
      else waiting.push(`${line}\n`);
    }
  });
  response.once('end', () => end(false));
  response.once('error', () => end(true));
  response.once('close', () => end(true));
  return {
    onLine(handler) {
      onLine = handler;
      for (const line of waiting.splice(0)) handler(line);
    },
    onEnd(handler) {
      onEnd = handler;
      if (ended !== undefined) handler(ended);
    },
    close: () => void response.destroy(),
  };
}
