/**
 * Markdown as man(7) wants it. Of markdown there is what the pages in docs/ use: headings, paragraphs,
 * indented code, lists, tables, and bold, code and links within them.
 */
import { marked, type Token, type Tokens } from 'marked';

/** What a link to another page becomes: `ubiblk-top(1)`; undefined where there is no such page. */
export type PageName = (href: string) => string | undefined;

/**
 * @param markdown its headings of the second level become sections
 * @returns roff source, each line with its end
 */
export function roffOf(markdown: string, pageName: PageName): string {
  return new Roff(pageName).blocks(marked.lexer(markdown));
}

/** Plain text that roff prints as it is, also at the start of a line. */
export function escaped(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti')
    .replaceAll('…', '...')
    .replace(
      /[^\x20-\x7e\n]/gu,
      (c) => `\\[u${c.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0')}]`,
    )
    .replace(/^\./gm, '\\&.');
}

class Roff {
  constructor(private readonly pageName: PageName) {}

  blocks(tokens: readonly Token[]): string {
    return tokens.map((token) => this.block(token)).join('');
  }

  private block(token: Token): string {
    switch (token.type) {
      case 'heading': {
        const { depth, text, tokens } = token as Tokens.Heading;
        if (depth > 2) return `.SS ${this.inline(tokens, 'B')}\n`;
        return `.SH ${escaped(text.replaceAll('`', '').toUpperCase())}\n`;
      }
      case 'paragraph':
        return `.PP\n${this.lines((token as Tokens.Paragraph).tokens)}`;
      case 'text': {
        const { tokens, text } = token as Tokens.Text;
        return tokens ? this.lines(tokens) : `${escaped(text)}\n`;
      }
      case 'code':
        return `.PP\n.RS 4\n.EX\n${escaped((token as Tokens.Code).text)}\n.EE\n.RE\n`;
      case 'list':
        return this.list(token as Tokens.List);
      case 'table':
        return this.table(token as Tokens.Table);
      case 'blockquote':
        return `.RS 4\n${this.blocks((token as Tokens.Blockquote).tokens)}.RE\n`;
      case 'space':
        return '';
      default:
        throw new Error(`markdown that a manual page can't have: ${token.type}`);
    }
  }

  private list({ items, ordered, start }: Tokens.List): string {
    const first = Number(start || 1);
    return items
      .map((item, index) => {
        const mark = ordered ? `${first + index}.` : '\\(bu';
        return `.IP ${mark} 4\n${this.item(item.tokens)}`;
      })
      .join('');
  }

  private item(tokens: readonly Token[]): string {
    const [first, ...others] = tokens;
    if (!first) return '';
    const rest = others.length > 0 ? `.RS 4\n${this.blocks(others)}.RE\n` : '';
    return `${this.block(first).replace(/^\.PP\n/, '')}${rest}`;
  }

  /**
   * A table as a list: what is in its first column, and behind it the others, with their headings where
   * there are several.
   */
  private table({ header, rows }: Tokens.Table): string {
    return rows
      .map((cells) => {
        const [term, ...others] = cells;
        const filled = others.flatMap((cell, index) => {
          const text = this.lines(cell.tokens).trimEnd();
          const heading = this.inline(header[index + 1].tokens, 'R');
          if (text === '') return [];
          return others.length > 1 && heading !== '' ? [`\\fI${heading}\\fR: ${text}`] : [text];
        });
        return `.TP\n${this.inline(term.tokens, 'B')}\n${filled.join('\n.br\n') || '\\&'}\n`;
      })
      .join('');
  }

  private lines(tokens: readonly Token[]): string {
    return `${this.inline(tokens, 'R').replace(/^ +/gm, '')}\n`;
  }

  /** @param font what the text around has: R or B */
  private inline(tokens: readonly Token[], font: string): string {
    return tokens.map((token) => this.span(token, font)).join('');
  }

  private span(token: Token, font: string): string {
    const within = (text: string, inner: string) => `\\f${inner}${text}\\f${font}`;
    switch (token.type) {
      case 'codespan':
        return within(escaped((token as Tokens.Codespan).text), 'B');
      case 'strong':
        return within(this.inline((token as Tokens.Strong).tokens, 'B'), 'B');
      case 'em':
        return within(this.inline((token as Tokens.Em).tokens, 'I'), 'I');
      case 'link':
        return this.link(token as Tokens.Link, font);
      case 'br':
        return '\n.br\n';
      case 'html':
        return '';
      case 'text':
      case 'escape':
        return escaped((token as Tokens.Text).text);
      default:
        throw new Error(`markdown that a manual page can't have: ${token.type}`);
    }
  }

  private link({ href, tokens }: Tokens.Link, font: string): string {
    const text = this.inline(tokens, font);
    const name = this.pageName(href);
    const web = /^https?:/.test(href) && !text.includes(escaped(href));
    if (web) return `${text} (${escaped(href)})`;
    if (name === undefined) return text;
    const shown = `\\fB${escaped(name).replace('(', '\\fR(')}\\f${font}`;
    return /^[\w./-]+\.md$/.test((tokens[0] as Tokens.Text)?.text ?? '')
      ? shown
      : `${text} (${shown})`;
  }
}
