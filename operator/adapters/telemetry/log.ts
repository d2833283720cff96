/** Logs: JSON lines for machines, or short lines for a person at a terminal. Nothing secret gets through, see `redact`. */
import pino from 'pino';
import type { Log } from '../../engine/types.ts';
import { redact, redactText } from './redact.ts';

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

export interface LogOptions {
  /** Which program speaks. */
  readonly name: string;
  readonly level?: LogLevel;
  /** For people. Left out: when standard output is a terminal. */
  readonly pretty?: boolean;
  /** Where lines go, each with its line end. Left out: standard output. */
  readonly write?: (line: string) => void;
}

export function createLog(options: LogOptions): Log {
  const pretty = options.pretty ?? process.stdout.isTTY === true;
  const write = options.write ?? ((line: string) => void process.stdout.write(line));
  const logger = pino(
    {
      name: options.name,
      level: options.level ?? 'info',
      base: { name: options.name },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (level) => ({ level }) },
    },
    { write: pretty ? (line: string) => write(forPeople(line)) : write },
  );
  return wrap(logger);
}

function wrap(logger: pino.Logger): Log {
  const at = (level: 'debug' | 'info' | 'warn' | 'error') => (fields: object, message: string) => {
    // Redacting costs; what is not written is not redacted.
    if (logger.isLevelEnabled(level)) logger[level](redact(fields) as object, redactText(message));
  };
  return {
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    child: (fields) => wrap(logger.child(redact(fields) as pino.Bindings)),
  };
}

const colours: Readonly<Record<string, string>> = { debug: '\x1b[2m', info: '', warn: '\x1b[33m', error: '\x1b[31m' };

function forPeople(line: string): string {
  const { level, time, name, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const { error, ...rest } = fields as { error?: { message?: string; stack?: string } };
  const details = Object.entries(rest).map(([key, value]) => `${key}=${text(value)}`);
  if (error !== undefined) details.push(`error=${text(error.message ?? error)}`);
  const colour = process.stdout.isTTY ? (colours[String(level)] ?? '') : '';
  const end = colour ? '\x1b[0m' : '';
  const head = `${String(time).slice(11, 23)} ${String(level).toUpperCase().padEnd(5)} ${name}`;
  const stack = level === 'error' && error?.stack ? `\n${error.stack.split('\n').slice(1, 6).join('\n')}` : '';
  return `${colour}${head}: ${msg}${details.length > 0 ? `  ${details.join(' ')}` : ''}${stack}${end}\n`;
}

/** Quoted when it would not read as one word; control characters never reach a terminal as such. */
function text(value: unknown): string {
  return typeof value === 'string' && /^[\w.:/@+-]+$/.test(value) ? value : (JSON.stringify(value) ?? 'undefined');
}
