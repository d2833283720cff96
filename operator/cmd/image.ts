#!/usr/bin/env node
/** `npm run image`: builds the image from the Dockerfile, says how large it is and how soon it is ready, writes its bill of materials. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { BASE_IMAGE, commitTime, findBuilder } from '../sandbox/image/builder.ts';
import { timeToReady } from '../sandbox/image/ready.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { choice, parseOptions, text, UsageError } from './options.ts';

const usage = `
Builds the image of gpulease from the Dockerfile and measures it. The last line is JSON.

  npm run image                                 builds gpulease:dev
  npm run image -- --twice                      builds it twice from nothing: the digests must be the same
  npm run image -- --archive gpulease.tar       also as a file, for \`docker load\`, \`kind load image-archive\`, \`ctr images import\`
  npm run image -- --ready                      also starts it, against a control plane of its own

buildah builds it, without a daemon; it is installed where that is possible. --builder docker takes the machine's Docker instead.
The base image is ${BASE_IMAGE}. Where it is not at hand and cannot be pulled, one is made from Debian's packages,
which is said. Packages are trusted by NODE_EXTRA_CA_CERTS and found by ~/.npmrc, as outside; neither gets into the image.

For several architectures, where an emulator is not needed because the last stage runs nothing:
  docker buildx build --platform linux/amd64,linux/arm64 --output type=image,rewrite-timestamp=true,push=true --tag NAME .

Exit status: 0 built, and within its targets (size ${'200 MB'} over the base, ready within 2 s where --ready asks); 1 not; 2 the command was
not understood.
`;

const declared = {
  tag: text('Its name.', 'NAME', 'localhost/gpulease:dev'),
  archive: text('Also write it to this file.', 'FILE'),
  sbom: text('Write the bill of materials here.', 'FILE', 'dist/sbom.cdx.json'),
  builder: choice('What builds it.', ['auto', 'buildah', 'docker'], 'auto'),
  platform: text("Of another architecture than this machine's; it is then not started.", 'OS/ARCH'),
  fresh: { description: 'Without the layers of earlier builds.', parse: () => true },
  twice: { description: 'Twice without them, and compare the digests.', parse: () => true },
  ready: {
    description: 'Start it, and measure how soon it is ready. Brings a Docker daemon where there is none.',
    parse: () => true,
  },
  dir: text('For what --ready starts.', 'DIR', join(tmpdir(), `gpulease-image-${process.getuid?.() ?? 0}`)),
};

const MOST_MB = 200;
const MOST_SECONDS = 2;
const started = Date.now();
const elapsed = () => (Date.now() - started) / 1000;
const report = (line: string) => console.log(`${elapsed().toFixed(1).padStart(7)} s  ${line}`);
const tenth = (n: number) => Math.round(n * 10) / 10;
const mb = (bytes: number) => tenth(bytes / 1e6);

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const { tag, platform } = options;
  if (platform && options.ready) throw new UsageError('--ready starts the image here: leave --platform out');
  const abort = new AbortController();
  const off = stopWithSignals(async () => abort.abort(new Error('stopped')), report);
  try {
    const builder = await findBuilder(options.builder, report, abort.signal);
    const sourceDateEpoch = await commitTime(process.env, abort.signal);
    const build = async (fresh: boolean) => {
      const since = elapsed();
      report(`building ${tag} with ${builder.name}${fresh ? ', from nothing' : ''}`);
      const image = await builder.build({ tag, sourceDateEpoch, fresh, platform }, abort.signal);
      report(
        `built in ${(elapsed() - since).toFixed(0)} s: ${image.digest}, ${mb(image.bytes - image.baseBytes)} MB over its base of ${mb(image.baseBytes)} MB${image.baseIsStandIn ? ' (a stand-in made here)' : ''}`,
      );
      return { ...image, seconds: tenth(elapsed() - since) };
    };
    const image = await build(options.twice || options.fresh || false);
    const again = options.twice ? await build(true) : undefined;
    if (again) report(again.digest === image.digest ? 'twice the same digest' : `NOT the same digest: ${again.digest}`);

    mkdirSync(dirname(options.sbom), { recursive: true });
    const sbom = await builder.read(tag, '/app/sbom.cdx.json', abort.signal);
    writeFileSync(options.sbom, sbom);
    const components = (JSON.parse(sbom) as { components: unknown[] }).components.length;
    report(`bill of materials: ${options.sbom}, ${components} components`);
    if (options.archive) {
      await builder.save(tag, options.archive, abort.signal);
      report(`written to ${options.archive}`);
    }
    const ready = options.ready ? await timeToReady(builder, tag, options.dir, report, abort.signal) : undefined;
    const megabytes = mb(image.bytes - image.baseBytes);
    const good =
      megabytes <= MOST_MB &&
      (!again || again.digest === image.digest) &&
      (!ready || Math.max(...Object.values(ready)) <= MOST_SECONDS);
    console.log(
      JSON.stringify({
        good,
        tag,
        builder: builder.name,
        digest: image.digest,
        sameTwice: again && again.digest === image.digest,
        megabytesOverBase: megabytes,
        megabytesOfBase: mb(image.baseBytes),
        baseIsStandIn: image.baseIsStandIn,
        components,
        buildSeconds: image.seconds,
        readySeconds: ready,
        seconds: tenth(elapsed()),
      }),
    );
    if (!good) process.exitCode = 1;
  } finally {
    if (!abort.signal.aborted) off();
  }
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
