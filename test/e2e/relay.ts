/** A relay between the two clusters: a container of the image on both their networks, as a machine of the internet would be. */
import type { Docker } from '../../operator/sandbox/kind/docker.ts';
import { type KindCluster, networkOf } from '../../operator/sandbox/kind/pair.ts';
import { until } from '../../operator/sandbox/scenario.ts';

const PORT = 9444;

export interface RelayPlace {
  /** What a gateway is given as --dial-out. */
  readonly dialOut: string;
  /** For `spec.endpoint.relay`. */
  readonly url: string;
  readonly spkiSHA256: string;
}

/** Where each side reaches it: on its own network. */
export interface RunningRelay {
  readonly consumer: RelayPlace;
  readonly provider: RelayPlace;
}

interface RelayOptions {
  readonly docker: Docker;
  readonly name: string;
  readonly consumer: KindCluster;
  readonly provider: KindCluster;
  readonly image: string;
}

export async function startRelay(options: RelayOptions, signal?: AbortSignal): Promise<RunningRelay> {
  const { docker, name, consumer, provider, image } = options;
  await docker.run(['rm', '--force', name], { signal }).catch(() => undefined);
  // It has an address on each network, which it gets as it starts, and is to be told: its certificate is for them.
  const script = `const own = Object.values(require('node:os').networkInterfaces()).flat()
  .filter(({ family, internal }) => family === 'IPv4' && !internal);
const urls = own.flatMap(({ address }) => ['--url', 'wss://' + address + ':${PORT}']);
const program = ['/app/operator/cmd/gpulease.js', 'relay', '--state', '/tmp/relay', '--operations-port', '0', ...urls];
process.execve(process.execPath, [process.execPath, ...program], process.env);`;
  await docker.run(
    [
      ...['create', '--name', name, '--network', networkOf(consumer.name), '--label', 'gpulease.dev/way=true'],
      ...['--read-only', '--tmpfs', '/tmp:mode=1777', '--cap-drop', 'ALL', '--user', '65532:65532'],
      ...['--entrypoint', 'node', image, '-e', script],
    ],
    { signal },
  );
  await docker.run(['network', 'connect', networkOf(provider.name), name], { signal });
  await docker.run(['start', name], { signal });
  return until(
    'the relay saying how it is dialled',
    60,
    async () => {
      const said = logLines(await docker.run(['logs', name], { signal }));
      const at = async (cluster: KindCluster): Promise<RelayPlace | undefined> => {
        const format = `{{(index .NetworkSettings.Networks "${networkOf(cluster.name)}").IPAddress}}`;
        const host = (await docker.run(['inspect', '--format', format, name], { signal })).trim();
        const line = said.find(({ dialOut }) => dialOut?.startsWith(`wss://${host}:`));
        if (!line?.dialOut || !line.spkiSHA256) return undefined;
        return { dialOut: line.dialOut, url: `https://${host}:${PORT}`, spkiSHA256: line.spkiSHA256 };
      };
      const [here, there] = await Promise.all([at(consumer), at(provider)]);
      return here && there ? { consumer: here, provider: there } : undefined;
    },
    signal,
  );
}

/** Of a program of ours that logs JSON. */
export function logLines(text: string): { readonly dialOut?: string; readonly spkiSHA256?: string }[] {
  return text.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []));
}
