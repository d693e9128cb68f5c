"""Renders content/*.md through theme/page.html into the directory that is named."""

import pathlib
import sys

import jinja2
import markdown

target = pathlib.Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
theme = jinja2.Environment(loader=jinja2.FileSystemLoader("theme")).get_template("page.html")
pages = []
for source in sorted(pathlib.Path("content").glob("*.md")):
    text = source.read_text()
    title = text.splitlines()[0].lstrip("# ")
    url = "/" if source.stem == "index" else f"/{source.stem}.html"
    pages.append({"title": title, "url": url, "name": f"{source.stem}.html", "body": markdown.markdown(text)})
for page in pages:
    (target / page["name"]).write_text(theme.render(title=page["title"], body=page["body"], pages=pages))
print(len(pages), "pages")
