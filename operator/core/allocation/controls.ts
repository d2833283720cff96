/**
 * What the owner of a provider decides while it runs, as one ConfigMap that all replicas watch:
 *
 *   mode           Serve; Hold: no new leases, those that run go on; HoldAndDrain: those that run end within drainSeconds
 *   drainSeconds   default 600
 *   blocked        accounts of consumers that are served no longer, separated by spaces, commas or lines; # begins a comment
 *   message        why, as consumers are told
 *
 * A word that is not known holds: whoever wrote it wanted less than before, and loses nothing but new leases by it. Without the
 * ConfigMap everything is served.
 */

export type Mode = 'Serve' | 'Hold' | 'HoldAndDrain';

export interface Controls {
  readonly mode: Mode;
  readonly drainSeconds: number;
  /** In lower case. */
  readonly blocked: ReadonlySet<string>;
  readonly message?: string;
  /** What could not be understood, in words for the owner. */
  readonly faults: readonly string[];
}

export const controlsName = 'gpulease-controls';

const modes: readonly Mode[] = ['Serve', 'Hold', 'HoldAndDrain'];
const fields: readonly string[] = ['mode', 'drainSeconds', 'blocked', 'message'];
const defaultDrainSeconds = 600;
const longestMessage = 200;
const mostBlocked = 10_000;
const mostFaults = 8;

export const noControls: Controls = {
  mode: 'Serve',
  drainSeconds: defaultDrainSeconds,
  blocked: new Set(),
  faults: [],
};

export function parseControls(data: Readonly<Record<string, string>> | undefined): Controls {
  if (data === undefined) return noControls;
  const faults: string[] = [];
  const fault = (text: string) => {
    if (faults.length < mostFaults) faults.push(text);
  };
  for (const field of Object.keys(data))
    if (!fields.includes(field)) fault(`${field.slice(0, 64)} is not known: there are ${fields.join(', ')}`);
  const wanted = (data.mode ?? '').trim();
  let mode = modes.find((one) => one.toLowerCase() === wanted.toLowerCase());
  if (mode === undefined) {
    if (wanted !== '') fault(`mode must be one of ${modes.join(', ')}: until then no new leases are taken`);
    mode = wanted === '' ? 'Serve' : 'Hold';
  }
  const drainText = (data.drainSeconds ?? '').trim();
  const isNumber = /^\d{1,6}$/.test(drainText);
  if (drainText !== '' && !isNumber) fault(`drainSeconds must be a whole number; ${defaultDrainSeconds} is taken`);
  const blocked = new Set<string>();
  for (const line of (data.blocked ?? '').split('\n'))
    for (const word of line.replace(/#.*$/, '').split(/[\s,]+/)) {
      if (word === '') continue;
      if (!/^0x[0-9a-fA-F]{40}$/.test(word)) fault(`blocked: ${word.slice(0, 64)} is no account (0x and 40 digits)`);
      else if (blocked.size >= mostBlocked)
        fault(`blocked has more than ${mostBlocked} accounts: the rest is not read`);
      else blocked.add(word.toLowerCase());
    }
  const message = (data.message ?? '')
    .replace(/[^\x20-\x7e\xa0-\uffff]+/g, ' ')
    .trim()
    .slice(0, longestMessage);
  return {
    mode,
    drainSeconds: isNumber ? Number(drainText) : defaultDrainSeconds,
    blocked,
    ...(message === '' ? {} : { message }),
    faults,
  };
}
