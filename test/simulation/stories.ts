/** Runs as prose, for whoever wants to see what the controllers do when the world breaks, without reading them. */
import { simulate } from './simulate.ts';

export interface Story {
  readonly seed: number;
  readonly file: string;
  readonly title: string;
  /** What to look for. */
  readonly about: string;
}

export const stories: readonly Story[] = [
  {
    seed: 59,
    file: 'quiet.md',
    title: 'A lease of which nothing can be told',
    about: 'Nothing breaks: quoted, funded, served, vouched for, ended at its term, settled, refunded, forgotten.',
  },
  {
    seed: 24,
    file: 'silent-chain.md',
    title: 'The chain says nothing for a while',
    about:
      'No RPC endpoint answers while a lease is served. Its pods run on, vouchers go on from what was read last, and nothing is closed because nobody knows.',
  },
  {
    seed: 88,
    file: 'killed.md',
    title: 'Killed, and killed again',
    about:
      'Operator and gateway die before and after calls, the chain forgets blocks and the pool forgets transactions; each time they begin again from what is stored.',
  },
  {
    seed: 85,
    file: 'lost-node.md',
    title: 'A node that does not come back in time',
    about:
      "The provider's node is away for longer than the operator waits: what was served is paid, the rest refunded.",
  },
];

const widthOf = 120;

export async function tell(story: Story): Promise<string> {
  const minutes = new Map<number, string[]>();
  const outcome = await simulate(story.seed, {
    say(seconds, line) {
      const minute = Math.floor(seconds / 60);
      const told = minutes.get(minute) ?? [];
      minutes.set(minute, told);
      const text = plain(line);
      // What is said twice in a row is heard once.
      if (told.at(-1) !== text) told.push(text);
    },
  });
  const faults = Object.entries(outcome.faults).sort(([, one], [, other]) => other - one);
  return `${[
    `# ${story.title}`,
    wrap(story.about),
    wrap(
      `Seed ${story.seed}: ${outcome.steps} steps in ${outcome.simulatedSeconds} simulated seconds. ${
        faults.length === 0
          ? 'Nothing broke.'
          : `Struck by: ${faults.map(([kind, count]) => `${kind} ${count}×`).join(', ')}.`
      } Told by \`npm run simulate -- --seed ${story.seed}\` in full; rewritten by \`UPDATE=1\`.`,
    ),
    ...[...minutes].map(([minute, lines]) => `## Minute ${minute + 1}\n\n${wrap(lines.join(' '))}`),
    outcome.violations.length === 0
      ? 'All that must hold held.'
      : outcome.violations.map(({ rule, message }) => `Violated: ${rule}: ${message}`).join('\n'),
  ].join('\n\n')}\n`;
}

/** Long names mean nothing to people. */
function plain(line: string): string {
  const text = line
    .replace(/^--- /, '')
    .replace(/0x[0-9a-f]{40,}/g, (hex) => `0x${hex.slice(2, 8)}…`)
    .replace(/\blease-([0-9a-f]{6})[0-9a-f]{50,}/g, 'lease-$1…')
    .replace(/\s+/g, ' ')
    .trim();
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function wrap(text: string): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > widthOf) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line].join('\n');
}
