"""What every report says in the same words: the page's head, its style, and the definitions."""

from plasticity_cl.report.statistics import LAST, LEVEL, RESAMPLES
from plasticity_cl.report.wording import NEGLIGIBLE

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --muted: #5d5d63; --paper: #ffffff; --rule: #d9d9de;
  --card: #f2f2f5; --warn: #7d4400; --warn-card: #fff4e0; --link: #005a9c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9ec; --muted: #a5a5ad; --paper: #17171a; --rule: #3a3a40;
    --card: #26262b; --warn: #ffc266; --warn-card: #33270f; --link: #7cc0ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
h1, h2, h3, p, dd, dt, li, figcaption { overflow-wrap: anywhere; }
p, dl, ul, .warn, figcaption { max-width: 46rem; }
a { color: var(--link); }
.lead { font-size: 1.08rem; }
.warn { color: var(--warn); background: var(--warn-card); border-radius: .4rem; padding: .6rem .9rem; }
.warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin-bottom: 1rem; }
caption { text-align: left; padding-bottom: .4rem; width: min(46rem, 100vw - 2rem); }
caption, figcaption { color: var(--muted); font-size: .9rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
.texts th, .texts td, th:first-child, td:first-child { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
thead th { vertical-align: bottom; }
th { font-weight: 600; }
tbody th { white-space: nowrap; }
td small { color: var(--muted); white-space: nowrap; display: block; }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: .2em; margin: 0 .45em 0 1px;
  box-shadow: 0 0 0 1px var(--muted); }
.verdicts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .6rem 1.2rem; max-width: none; }
.verdicts dt { font-weight: 600; max-width: 16rem; }
.verdicts dd { margin: 0; max-width: 42rem; }
.verdicts p { margin: 0 0 .3rem; }
.terms dt { font-weight: 600; margin-top: .7rem; }
.terms dd { margin: 0 0 0 1rem; }
figure { margin: 1.5rem 0; }
img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: .4rem; }
figcaption { margin-top: .4rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
code { font-size: .92em; background: var(--card); border-radius: .25rem; padding: .1em .3em; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .verdicts { grid-template-columns: 1fr; gap: .2rem; }
  .verdicts dd { margin-bottom: .9rem; }
  th, td { padding: .3rem .45rem; }
}
"""

HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Plasticity and forgetting, told apart</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Plasticity and forgetting, told apart</h1>
<p class="lead">When a network gets worse on a stream of experiences, either it could no longer learn the later ones, or
it forgot the earlier ones. Each strategy is compared with its own fresh networks, which shows how much is which.</p>"""

DEFINITIONS = f"""
<h2 id="definitions">What the words mean</h2>
<p>Scores are accuracy, or R² in regression: higher is better. For experience k of a stream:</p>
<dl class="terms">
<dt>S<sub>k</sub>, fresh network</dt>
<dd>The score on k of a network that starts anew and is trained on k alone, with the same strategy, data, epochs, batch
order and optimizer.</dd>
<dt>A<sub>kk</sub>, learned</dt>
<dd>The score on k right after training on k.</dd>
<dt>A<sub>Kk</sub>, final</dt>
<dd>The score on k at the end of the stream.</dd>
<dt>Plasticity loss, S<sub>k</sub> − A<sub>kk</sub></dt>
<dd>What a fresh network would have learned and this one did not. It is a <em>net</em> deficit: what earlier experiences
help (transfer) is in it as well as the ability to learn that was lost. Where help outweighs loss it is negative.</dd>
<dt>Forgetting, A<sub>kk</sub> − A<sub>Kk</sub></dt>
<dd>What was learned and is gone at the end. What was never learned cannot be forgotten, so little forgetting beside a
large plasticity loss is no sign of a good memory; and a stream that gives old inputs new targets asks for forgetting.
For the last experience it is zero by definition.</dd>
<dt>Total, S<sub>k</sub> − A<sub>Kk</sub></dt>
<dd>The sum of the two: S<sub>k</sub> − A<sub>Kk</sub> = (S<sub>k</sub> − A<sub>kk</sub>) + (A<sub>kk</sub> −
A<sub>Kk</sub>), exactly.</dd>
<dt>Training data and test data</dt>
<dd>On the data that was trained on, plasticity loss is lost trainability; on test data it is lost generalisation. The
two need not go together.</dd>
<dt>Means and intervals</dt>
<dd>Each run gives one number, its mean over all experiences, or over the last {LAST} for &ldquo;learned&rdquo; and
&ldquo;fresh&rdquo;; means are over runs with different seeds. Brackets hold the {LEVEL:.0%} percentile bootstrap
interval of that mean, from {RESAMPLES} draws of seeds with replacement. With few seeds such intervals are too narrow:
with three they reach from the smallest to the largest value and hold the true mean in about three of four cases. One
seed has no interval. Differences to a baseline are taken seed by seed. Differences below {NEGLIGIBLE} are called
nothing.</dd>
<dt>Diverged and unfinished runs</dt>
<dd>They are named, drawn as far as they got, and enter no mean.</dd>
</dl>"""
