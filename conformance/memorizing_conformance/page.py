"""The report as one HTML page that needs nothing but itself."""

import html

from memorizing_conformance.report import Report, RuleReport

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1d2430; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde2ea;
  vertical-align: top; }
code, pre { font: .85em/1.4 ui-monospace, monospace; }
pre { white-space: pre-wrap; background: #f3f5f8; padding: .6rem; }
.pass { color: #14713d; } .broken { color: #b3261e; font-weight: 600; }
.known { color: #8a5a00; } .skipped, .untested { color: #5b6675; }
@media (prefers-color-scheme: dark) {
  body { color: #e4e8ee; background: #15191f; } td, th { border-color: #333b47; }
  pre { background: #1f252d; } .pass { color: #6fcf97; } .broken { color: #ff8a80; }
  .known { color: #f2c14e; } .skipped, .untested { color: #98a3b3; } }
"""


def as_html(report: Report) -> str:
    """Returns the page: a table of the rules, then each failure with its example."""
    name = html.escape(report.name)
    counts = {
        status: sum(rule.status == status for rule in report.rules)
        for status in ("pass", "broken", "known", "skipped", "untested")
    }
    summary = ", ".join(
        f"{count} {status}" for status, count in counts.items() if count
    )
    rows = "\n".join(_row(rule) for rule in report.rules)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{name}: conformance</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head>
<body>
<h1>{name}: the rules of memorizing transformers</h1>
<p>{summary}.</p>
<pre>{html.escape(report.rerun)}</pre>
<table>
<tr><th scope="col">Rule</th><th scope="col">Says</th><th scope="col">Result</th></tr>
{rows}
</table>
{_failures(report)}</body>
</html>
"""


def _row(rule: RuleReport) -> str:

    return (
        f"<tr><td><code>{rule.rule}</code></td><td>{html.escape(rule.says)}</td>"
        f'<td><span class="{rule.status}">{html.escape(rule.outcome)}</span></td></tr>'
    )


def _failures(report: Report) -> str:
    parts = []
    for result in report.failures:
        lines = [result.message]
        if result.example:
            lines.append(f"smallest example: {result.example}")
        if result.reason:
            lines.append(f"known: {result.reason}")
        lines.append(report.rerun_of(result))
        parts.append(
            f"<h2>{html.escape(' '.join(result.rules))}: <code>"
            f"{html.escape(result.test)}</code></h2>\n"
            f"<p>Level: {result.level}</p>\n"
            f"<pre>{html.escape(chr(10).join(lines))}</pre>\n"
        )
    return "".join(parts)
