"""The page in a real browser: what a person sees and does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regbn_surgery._report.page import to_page

from ..report.graphs import POINT, after, before, box, crossing, graph, layers, node


class Host:
    host, host_class, tier, sites, reason = "", "Model", 2, (), ""
    unhooked = "the tensor comes by another way"
    before = "return cat(a, b)"
    after = "c, d = self.regbn_late(a, b)\nreturn cat(c, d)"
    way, files = "source", (("model.py", before, after, 7),)
    slots = ()


def shown(page):
    return set(page.eval_on_selector_all("#nodes g[data-id]", "all => all.map(g => g.dataset.id)"))


def opened(page):
    return set(page.eval_on_selector_all("#boxes g[data-id]", "all => all.map(g => g.dataset.id)"))


def item(page, identity):
    return page.locator(f"g[data-id={identity!r}]")


def place(page):
    return page.locator("#scene").get_attribute("transform")


def scale(page):
    return float(place(page).partition("scale(")[2].rstrip(")"))


def settled(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


ROW = "encoder.layers.0 … encoder.layers.3"


class TestPicture:
    def test_everything_that_is_open_is_drawn(self, visit):
        page = visit(to_page(before(2)))
        assert {"input image", "input text", "embed", "/cat", "output", "encoder.layers.0.fc0"} <= shown(page)
        assert opened(page) == {"encoder", "encoder.layers.0", "encoder.layers.1"}
        assert page.locator("#edges path").count() == len(before(2).edges)
        assert page.title() == "Model · RegBN surgery"

    def test_nothing_lies_over_anything_and_all_lies_within_its_box(self, visit):
        page = visit(to_page(before(3)))
        page.keyboard.press("e")
        overlaps = page.evaluate("""() => {
          const rects = [...shown.nodes].map(([id, r]) => ({ id, ...r })), bad = [];
          for (const a of rects) for (const b of rects) {
            const apart = a.x >= b.x + b.w || b.x >= a.x + a.w || a.y >= b.y + b.h || b.y >= a.y + a.h;
            if (a.id < b.id && !apart) bad.push([a.id, b.id]);
          }
          for (const a of rects) for (const name of model.around(model.parent(a.id))) {
            const r = shown.boxes.get(name);
            if (r && (a.x < r.x || a.y < r.y || a.x + a.w > r.x + r.w || a.y + a.h > r.y + r.h)) bad.push([a.id, name]);
          }
          return bad;
        }""")
        assert overlaps == []

    @pytest.mark.parametrize("make", [lambda: before(4), after, crossing], ids=["before", "after", "crossing"])
    def test_no_edge_runs_over_a_call_that_it_does_not_join(self, visit, make):
        page = visit(to_page(make()))
        page.keyboard.press("e")
        crossed = page.evaluate("""() => {
          const bad = [];
          for (const { edge, points } of shown.edges) for (const [id, r] of shown.nodes) {
            if (id === edge.source || id === edge.target) continue;
            for (let i = 1; i < points.length; i++) for (let k = 0; k <= 20; k++) {
              const [[x1, y1], [x2, y2]] = [points[i - 1], points[i]];
              const x = x1 + (x2 - x1) * k / 20, y = y1 + (y2 - y1) * k / 20;
              const over = x > r.x && x < r.x + r.w && y > r.y && y < r.y + r.h;
              if (over) bad.push(`${edge.source} > ${edge.target} over ${id}`);
            }
          }
          return [...new Set(bad)];
        }""")
        assert crossed == []

    def test_all_calls_are_in_view_at_once(self, visit):
        page = visit(to_page(before(4)))
        page.set_viewport_size({"width": 390, "height": 800})
        page.check("#all")
        settled(page)
        stage, scene = (page.locator(name).bounding_box() for name in ("#stage", "#nodes"))
        assert scene["x"] >= stage["x"]
        assert scene["x"] + scene["width"] <= stage["x"] + stage["width"]
        assert scene["y"] + scene["height"] <= stage["y"] + stage["height"] + 1

    def test_calls_come_below_what_they_read(self, visit):
        page = visit(to_page(before(3)))
        wrong = page.evaluate("""() => shown.edges.filter(({ edge }) =>
          shown.nodes.get(edge.target).y <= shown.nodes.get(edge.source).y).map(({ edge }) => edge.target)""")
        assert wrong == []

    def test_streams_have_their_colours_in_light_and_dark(self, visit):
        page = visit(to_page(before(2)), color_scheme="light")
        colour = "g => getComputedStyle(g.querySelector('rect')).stroke"
        light = [item(page, name).evaluate(colour) for name in ("encoder.layers.0.fc0", "embed")]
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("t")
        dark = [item(page, name).evaluate(colour) for name in ("encoder.layers.0.fc0", "embed")]
        assert light == ["rgb(0, 114, 178)", "rgb(213, 94, 0)"]
        assert len({*light, *dark}) == 4
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper

    def test_the_system_may_be_dark_from_the_start(self, visit):
        page = visit(to_page(before(2)), color_scheme="dark")
        red = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in red[4:-1].split(",")) < 60


class TestSummary:
    def test_a_fusion_point_of_several_calls_is_one_link_to_the_first(self, visit):
        nodes, pairs, boxes = layers(2)
        again = replace(next(n for n in nodes if n.id == "/cat"), id="/cat_again")
        page = visit(
            to_page(graph([*nodes[:-1], again, nodes[-1]], [*pairs, "/cat > /cat_again"], boxes, {"cat": POINT}))
        )
        assert "1 fusion point" in page.locator("#details").inner_text()
        links = page.locator("#details li button")
        assert links.all_inner_texts() == ["cat (2 calls)"]
        links.first.click()
        assert "selected" in item(page, "/cat").get_attribute("class")


class TestModules:
    def test_a_repeat_begins_closed_and_opens_step_by_step(self, visit):
        page = visit(to_page(graph(*_wide(), points={"cat": POINT})))
        assert ROW in shown(page)
        item(page, ROW).dblclick()
        assert {f"encoder.layers.{i}" for i in range(4)} <= shown(page)
        item(page, "encoder.layers.2").dblclick()
        assert "encoder.layers.2.fc7" in shown(page)
        item(page, "encoder.layers.2").locator("rect").first.dblclick(position={"x": 20, "y": 12})
        assert "encoder.layers.2.fc7" not in shown(page)

    def test_collapse_all_and_expand_all(self, visit):
        page = visit(to_page(before(4)))
        page.get_by_role("button", name="Collapse all").click()
        assert opened(page) == set()
        assert shown(page) == {"input image", "input text", "encoder", "embed", "/cat", "output"}
        page.get_by_role("button", name="Expand all").click()
        assert len(shown(page)) == len(before(4).nodes)

    def test_details_of_a_module_offer_to_open_it(self, visit):
        page = visit(to_page(before(4)))
        page.keyboard.press("c")
        item(page, "encoder").click()
        assert "12" in page.locator("#details").inner_text()
        page.get_by_role("button", name="Expand", exact=True).click()
        assert "encoder" in opened(page)


def _wide():
    """Layers of so many calls that not all of them are shown at the beginning."""
    nodes, pairs, boxes = layers(4, each=30)
    return nodes, pairs, boxes


class TestSearch:
    def test_finds_what_is_hidden_and_opens_the_way_to_it(self, visit):
        page = visit(to_page(graph(*_wide(), points={"cat": POINT})))
        page.keyboard.press("/")
        page.keyboard.type("layers.2.fc17")
        assert page.locator("#count").inner_text() == "1 found"
        page.keyboard.press("Enter")
        assert page.locator("#count").inner_text() == "1 of 1"
        assert "encoder.layers.2.fc17" in shown(page)
        assert "selected" in item(page, "encoder.layers.2.fc17").get_attribute("class")
        assert page.locator("#details h2").inner_text() == "fc17: Linear"

    def test_goes_round_and_says_when_there_is_nothing(self, visit):
        page = visit(to_page(before(2)))
        page.fill("#search", "FC0")
        page.click("#next")
        page.click("#next")
        assert page.locator("#count").inner_text() == "2 of 2"
        page.click("#next")
        assert page.locator("#count").inner_text() == "1 of 2"
        page.fill("#search", "no such thing")
        assert page.locator("#count").inner_text() == "0 found"

    def test_hits_are_marked(self, visit):
        page = visit(to_page(before(2)))
        page.fill("#search", "cat")
        assert "found" in item(page, "/cat").get_attribute("class")
        page.fill("#search", "")
        assert "found" not in item(page, "/cat").get_attribute("class")


class TestDetails:
    def test_a_click_tells_shape_dtype_source_lineage_and_the_fusion_point(self, visit):
        page = visit(to_page(before(2)))
        item(page, "/cat").click()
        text = page.locator("#details").inner_text()
        for part in ("2×8 (B×C) float32", "stream: image+text", "/home/me/model.py:7 in forward", "fusion point cat",
                     "concat, late", "image 2×8 (B×C)", "W 8×8"):  # fmt: skip
            assert part in text

    def test_links_lead_along_the_edges(self, visit):
        page = visit(to_page(before(2)))
        item(page, "embed").click()
        page.locator("#details button", has_text="cat").click()
        assert page.locator("#details h2").inner_text() == "cat"

    def test_escape_goes_back_to_the_summary(self, visit):
        page = visit(to_page(before(2)))
        item(page, "embed").click()
        page.keyboard.press("Escape")
        assert "1 fusion point" in page.locator("#details").inner_text()


class TestSurgery:
    def test_the_switch_shows_the_model_before_and_after(self, visit):
        page = visit(to_page(before(), after(), [Host()]))
        assert "regbn_late (RegBN)" in shown(page)
        assert page.locator("#edges path.changed").count() == 3
        page.get_by_role("button", name="Before").click()
        assert "regbn_late (RegBN)" not in shown(page)
        assert page.locator("#edges path.changed").count() == 0
        page.keyboard.press("b")
        assert "regbn_late (RegBN)" in shown(page)

    def test_what_is_open_and_selected_stays(self, visit):
        page = visit(to_page(before(), after(), [Host()]))
        page.keyboard.press("e")
        item(page, "/cat").click()
        kept = opened(page)
        page.keyboard.press("b")
        assert opened(page) == kept
        assert "selected" in item(page, "/cat").get_attribute("class")

    def test_the_code_that_changed_is_told(self, visit):
        page = visit(to_page(before(), after(), [Host()]))
        item(page, "regbn_late (RegBN)").click()
        assert "+c, d = self.regbn_late(a, b)" in page.locator("#details pre .add").first.inner_text()
        assert "Why no hook: the tensor comes by another way." in page.locator("#details").inner_text()

    def test_the_changed_module_is_outlined(self, visit):
        changed = replace(after(2), changed=("encoder",))
        page = visit(to_page(before(2), changed))
        assert "changed" in item(page, "encoder").get_attribute("class")

    def test_without_a_surgery_there_is_no_switch(self, visit):
        page = visit(to_page(before()))
        assert not page.get_by_role("button", name="Before").is_visible()
        page.keyboard.press("b")
        assert "/cat" in shown(page)


class TestMoving:
    def test_drag_wheel_and_fit(self, visit):
        page = visit(to_page(before()))
        settled(page)
        first = place(page)
        page.mouse.move(60, 700)
        page.mouse.down()
        page.mouse.move(160, 650, steps=4)
        page.mouse.up()
        settled(page)
        dragged = place(page)
        assert dragged != first
        size = scale(page)
        page.mouse.wheel(0, -300)
        settled(page)
        assert scale(page) > size
        page.get_by_role("button", name="Fit").click()
        settled(page)
        assert place(page) == first

    def test_the_point_under_the_pointer_stays_while_zooming(self, visit):
        page = visit(to_page(before()))
        inside = item(page, "embed").bounding_box()
        x, y = inside["x"] + inside["width"] / 2, inside["y"] + inside["height"] / 2
        page.mouse.move(x, y)
        page.mouse.wheel(0, -250)
        settled(page)
        now = item(page, "embed").bounding_box()
        assert now["width"] > inside["width"]
        assert (now["x"] + now["width"] / 2, now["y"] + now["height"] / 2) == pytest.approx((x, y), abs=3)


class TestKeyboard:
    def test_all_the_way_without_a_mouse(self, visit):
        page = visit(to_page(before(2)))
        page.keyboard.press("/")
        page.keyboard.type("embed")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")  # out of the field
        page.keyboard.press("ArrowDown")
        assert page.locator("#details h2").inner_text() == "cat"
        assert page.locator("#said").inner_text() == "selected /cat"
        page.keyboard.press("ArrowUp")
        assert page.locator("#details h2").inner_text() in ("embed: Embedding", "fc2: Linear")

    def test_enter_opens_and_closes_a_module(self, visit):
        page = visit(to_page(before(2)))
        page.keyboard.press("c")
        page.fill("#search", "encoder.layers.1")
        page.keyboard.press("Escape")
        item(page, "encoder").click()
        page.keyboard.press("Enter")
        assert "encoder" in opened(page)
        page.keyboard.press("Enter")
        assert "encoder" not in opened(page)

    def test_every_control_can_be_reached_by_tab(self, visit):
        page = visit(to_page(before(2), after(2)))
        reached = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.show || ''"))
        assert {
            "before",
            "after",
            "search",
            "next",
            "expand",
            "collapse",
            "all",
            "fit",
            "theme",
            "keys",
            "stage",
        } <= reached

    def test_help(self, visit):
        page = visit(to_page(before(2)))
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#help").is_visible()


def test_text_from_the_model_is_shown_and_never_run(visit):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    closing = "</script><script>alert(3)</script>"
    nodes = [
        node("input image", kind="input", label=evil),
        node(evil, box=closing, kind="module", label=evil, source=evil, details=((evil, closing),)),
        node("@DATA@@SCRIPT@", kind="fusion", point=closing, home=("image", "text")),
        node("output", kind="output"),
    ]
    pairs = [f"input image > {evil}", f"{evil} > @DATA@@SCRIPT@", "@DATA@@SCRIPT@ > output"]
    made = graph(nodes, pairs, [box(closing, class_name=evil)], {closing: {**POINT, "note": evil}}, title=evil)
    page = visit(to_page(made, made, [Host()]))
    assert page.locator("#title").inner_text() == evil
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    page.fill("#search", "alert(1)")
    page.click("#next")
    assert evil in page.locator("#details").inner_text()
    page.fill("#search", "DATA")
    page.click("#next")
    assert f"fusion point {closing}" in page.locator("#details").inner_text()


def test_of_two_thousand_nodes_only_those_in_view_are_drawn(visit):
    """Everything open at once, zoomed in and moved: a browser's time for a frame goes with what is displayed."""
    nodes, pairs, boxes = layers(100, each=20)
    page = visit(to_page(graph(nodes, pairs, boxes, {"cat": POINT})))
    page.evaluate("openAll(true)")
    assert len(shown(page)) == len(nodes) > 2000
    page.evaluate("zoom(40)")
    settled(page)
    counted = """() => [...document.querySelectorAll("#nodes g, #edges path, #boxes g")]
      .filter((e) => e.style.display !== "none").length"""
    assert 0 < page.evaluate(counted) < 200
    page.evaluate("state.y -= 400; move()")
    settled(page)
    assert 0 < page.evaluate(counted) < 200
    page.evaluate("fit()")
    settled(page)
    assert page.evaluate(counted) > 400
