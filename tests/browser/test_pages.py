"""What a reader of the built book sees: formulas, sliders, search, small screens, both themes.

The checks on a page share one opened page, and run in the order of this file.
"""

import pytest
from axe_playwright_python.sync_playwright import Axe

from .conftest import DESKTOP
from .gestures import drag, swipe

# Each formula is hundreds of elements, in the colour of the text around it, each word of code an
# element: a word instead of a formula, and one colour of code of each kind, spare minutes.
LIGHTEN = """() => {
    document.querySelectorAll('mjx-container').forEach(
        formula => formula.replaceWith('formula'));
    const seen = new Set();
    const path = element =>
        element && `${path(element.parentElement)}${element.tagName}.${element.className} `;
    // All are looked at before the first is replaced: each change asks for a new layout.
    const code = [...document.querySelectorAll('pre')].filter(pre => pre.checkVisibility());
    for (const pre of code)
        for (const word of pre.querySelectorAll('span:not([id], :has(*))')) {
            const key = path(word);
            if (seen.has(key)) word.replaceWith(word.textContent);
            seen.add(key);
        }
}"""
# Text inside the same tags and classes has the same colours: axe is given one of each, and nothing
# of what is hidden (but for the switches of tabs, which decide how others look); what is emptied by
# this counts like what was empty.
THIN_OUT = """() => {
    const seen = new Set();
    // All are looked at before the first is removed: each removal asks for a new layout.
    const visible = new Set(
        [...document.querySelectorAll('body *')].filter(element => element.checkVisibility()));
    const thinOut = (element, around) => {
        const key = `${around}${element.tagName}.${element.getAttribute('class')} `;
        for (const child of [...element.children]) thinOut(child, key);
        if (element.children.length || element.tagName == 'INPUT') return;
        if (seen.has(key) || !visible.has(element)) element.remove();
        else seen.add(key);
    };
    for (const element of [...document.body.children]) thinOut(element, '');
}"""
# No preload: the page loads nothing more for the sake of the check.
AXE = {"resultTypes": ["violations"], "preload": False}
RULES = {"runOnly": ["wcag2a", "wcag2aa"], "rules": {"color-contrast": {"enabled": False}}}

READING = """() => {
    const maths = [...document.querySelectorAll('span.math, div.math')];
    const text = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT, node =>
        node.parentElement.closest('mjx-container, script, style, code, pre, textarea')
            ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
    const raw = [], parted = [];  // a number and its per cent may stand on two lines
    while (text.nextNode()) {
        if (/(\\d|^) %/.test(text.currentNode.data)) parted.push(text.currentNode.data);
        if (/\\\\[([]|\\\\[a-zA-Z]{2,}|\\$/.test(text.currentNode.data))
            raw.push(text.currentNode.data);
    }
    return {
        formulas: maths.length,
        once: maths.filter(m => m.querySelectorAll('mjx-container').length == 1).length,
        rendered: document.querySelectorAll('mjx-container').length,
        empty: [...document.querySelectorAll('mjx-container')].filter(
            m => m.offsetWidth == 0 && m.checkVisibility()).length,
        // An unknown macro is shown in red, not as an error; its name is left in the MathML.
        errors: [...document.querySelectorAll(
            'mjx-merror, [data-mjx-error], mjx-assistive-mml [mathcolor=red]')].map(
            e => e.dataset.mjxError ?? e.textContent),
        raw,
        parted,
    };
}"""

SLIDER = """box => ({
    shown: [...box.querySelectorAll('img')].flatMap((img, i) => img.checkVisibility() ? [i] : []),
    output: box.querySelector('output').textContent,
    told: box.querySelector('input').getAttribute('aria-valuetext'),
})"""

# The page is a desktop's again (a phone's formulas scroll, paper breaks its lines), and the theme
# has seen it.
DESKTOP_SETTLED = """width => innerWidth == width && matchMedia('screen').matches
    && [...document.querySelectorAll('pre, .pst-scrollable-table-container')].every(
        box => box.scrollWidth <= box.clientWidth || box.tabIndex == 0)"""

# Punctuation that has been left behind by its formula, at the start of the next line.
LEFT_BEHIND = """() => [...document.querySelectorAll('span.math')].filter(formula => {
    const text = formula.nextSibling;
    if (text?.nodeType != Node.TEXT_NODE || !/^[.,;:?!)]/.test(text.data)) return false;
    const mark = document.createRange();
    mark.setStart(text, 0);
    mark.setEnd(text, 1);
    return mark.getBoundingClientRect().top > formula.getBoundingClientRect().bottom - 2;
}).map(formula => formula.parentElement.textContent.slice(0, 80))"""

# Closed solutions, handles and buttons, lines of code that run over the edge.
LOST_ON_PAPER = """() => [...document.querySelector('.bd-content').querySelectorAll(
    'details:not([open]), .toggle-hidden, .frame-slider input, button, pre')].filter(
        e => e.checkVisibility() && (e.tagName != 'PRE' || e.scrollWidth > e.clientWidth)).map(
        e => e.outerHTML.slice(0, 200))"""

# What runs over the edge of its box, folded proofs and solutions included, which it leaves folded.
CUT_OFF = """() => {
    const folded = [...document.querySelectorAll('.toggle-hidden')];
    const closed = [...document.querySelectorAll('details:not([open])')];
    folded.forEach(box => box.classList.remove('toggle-hidden'));
    closed.forEach(box => box.open = true);
    const right = element => element.getBoundingClientRect().right;
    const cut = [...document.querySelectorAll('.bd-article .math')].filter(
        e => e.checkVisibility() && !e.closest('dl.py')  // the reference's may scroll
            && right(e.querySelector('mjx-math')) > right(e) + 1);
    const wide = [...document.querySelectorAll('.cell_input pre')].filter(
        e => e.scrollWidth > e.clientWidth);
    folded.forEach(box => box.classList.add('toggle-hidden'));
    closed.forEach(box => box.open = false);
    return [...cut, ...wide].map(element => element.textContent.slice(0, 80));
}"""

# Sliders that run over a phone's edge without a hint, or have one for nothing.
UNTOLD = """async () => {
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return [...document.querySelectorAll('.frame-slider')].filter(box =>
        (box.scrollWidth > box.clientWidth)
            != getComputedStyle(box, '::before').content.includes('swipe')).map(
        box => box.querySelector('label').textContent);
}"""

# Formulas, code and tables that run over a phone's edge and do not fade there, or fade at their
# end, or for nothing.
UNFADED = """async () => {
    const drawn = () => new Promise(done =>
        requestAnimationFrame(() => requestAnimationFrame(done)));
    const faded = box => {
        const style = getComputedStyle(box);
        return style.maskImage != 'none' && style.getPropertyValue('--fade') != '0px';
    };
    const boxes = [...document.querySelectorAll(
        '.bd-article :is(pre, span.math, .math > mjx-container, .pst-scrollable-table-container)'
        )].filter(
        box => box.checkVisibility() && getComputedStyle(box).overflowX == 'auto');
    // A formula has hidden text beside it, for screen readers.
    const width = box => box.matches('.math, .math *')
        ? box.querySelector('mjx-math').offsetWidth : box.scrollWidth;
    await drawn();
    const wrong = boxes.filter(box => faded(box) != width(box) > box.clientWidth + 2);
    boxes.forEach(box => box.scrollLeft = box.scrollWidth);
    await drawn();
    wrong.push(...boxes.filter(faded));
    boxes.forEach(box => box.scrollLeft = 0);
    return wrong.map(box => box.textContent.slice(0, 80));
}"""


def test_formulas_are_rendered(opened, book):
    source = (book / opened.name).read_text(encoding="utf-8")
    count = source.count('class="math notranslate nohighlight"')
    seen = opened.page.evaluate(READING)
    assert (seen["errors"], seen["raw"], seen["parted"]) == ([], [], [])
    assert seen["formulas"] == seen["once"] == seen["rendered"] == count
    assert seen["empty"] == 0


def test_code_and_formulas_fit_the_column_of_a_small_desktop(opened):
    """Lines of 84 letters, as book/ruff.toml allows, at the 1280 pixels of the page opened here."""
    assert opened.page.evaluate(CUT_OFF) == []


# The desktop first, as the page stands; then a phone, as the next check needs it.
@pytest.mark.parametrize("width", [DESKTOP["width"], 390])
def test_no_line_begins_with_a_full_stop(opened, width):
    opened.page.set_viewport_size({**DESKTOP, "width": width})
    assert opened.page.evaluate(LEFT_BEHIND) == []


@pytest.mark.parametrize("width", [320, 390])  # 320: also a desktop's at four times the size
def test_no_sideways_scroll_on_a_phone(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 844})
    found, moved = opened.page.evaluate(
        "() => { scrollTo(1000, 0); return [document.documentElement.scrollWidth, scrollX]; }"
    )
    assert (found, moved) == (width, 0)


def test_a_slider_wider_than_a_phone_says_so(opened):
    """On the phone of the check before."""
    assert opened.page.evaluate(UNTOLD) == []


def test_what_is_wider_than_a_phone_fades_at_its_edge(opened):
    """On the phone of the check before."""
    assert opened.page.evaluate(UNFADED) == []


@pytest.fixture(scope="module")
def lightened(opened):
    """The page when its formulas have been looked at, of a desktop's size again."""
    opened.page.evaluate(LIGHTEN)
    opened.page.set_viewport_size(DESKTOP)
    return opened


def test_sliders_change_the_picture(lightened):
    boxes = lightened.page.locator(".frame-slider").all()
    if not boxes:
        pytest.skip("no slider on this page")
    for box in boxes:
        values = box.get_attribute("data-values").split(",")
        handle = box.locator("input")

        def assert_shows(i, box=box, values=values):
            shows = {"shown": [i], "output": values[i], "told": values[i]}
            assert box.evaluate(SLIDER) == shows

        last = len(values) - 1
        assert last > 0
        assert_shows(int(handle.get_attribute("value")))
        for key, i in [("Home", 0), ("ArrowRight", 1), ("End", last), ("ArrowLeft", last - 1)]:
            handle.press(key)
            assert_shows(i)
        if box is boxes[0]:  # one stands for all: they are one component
            at = places(handle, len(values))
            for start, end in [(last, 0), (0, last)]:
                lightened.page.mouse.click(*at[start])
                assert_shows(start)
                drag(lightened.page.mouse, at[start], at[end])
                assert_shows(end)
                lightened.page.touchscreen.tap(*at[start])
                assert_shows(start)
                swipe(lightened, at[start], at[end])
                assert_shows(end)


def places(handle, count):
    """Where on the screen the handle stands for each value."""
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    thumb = 16  # Chromium's; its middle never reaches the ends
    step = (box["width"] - thumb) / (count - 1)
    y = box["y"] + box["height"] / 2
    return [(box["x"] + thumb / 2 + i * step, y) for i in range(count)]


def test_prints_on_white_paper_without_what_only_a_screen_can_do(lightened):
    settings = lightened.page.evaluate_handle("document.documentElement.dataset")
    settings.evaluate("settings => { settings.theme = 'dark' }")
    lightened.page.emulate_media(media="print")
    lightened.page.set_viewport_size({"width": 720, "height": 1000})  # A4 without its margins
    lightened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert settings.evaluate("settings => settings.theme") == "light"
    assert lightened.page.evaluate(LOST_ON_PAPER) == []
    lightened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert settings.evaluate("settings => settings.theme") == "dark"
    lightened.page.emulate_media(media="screen")
    lightened.page.set_viewport_size(DESKTOP)


# After the checks above, so that it has seen what they made the page do.
def test_nothing_left_the_machine_and_nothing_complained(opened):
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.complaints == []


def test_page_is_accessible(lightened):
    # 0.3 s after a change of size, the theme decides anew what the keyboard can scroll; what it
    # decides late, on a slow machine, is to be over before we look.
    lightened.page.wait_for_timeout(400)
    lightened.page.wait_for_function(DESKTOP_SETTLED, arg=DESKTOP["width"])
    results = Axe().run(lightened.page, options={**AXE, **RULES})
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(lightened, theme):
    # The pointer, left on a slider, would colour a link that comes to lie under it.
    lightened.page.mouse.move(0, 0)
    # Colours on their way from one theme to the other would be measured half way.
    lightened.page.add_style_tag(content="* { transition: none !important }")
    # It shows only after a scroll up, so that by chance it would be looked at or not.
    lightened.page.add_style_tag(content="#pst-back-to-top { display: block !important }")
    # As the theme's own button does it.
    lightened.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    lightened.page.evaluate(THIN_OUT)
    results = Axe().run(lightened.page, options={**AXE, "runOnly": ["color-contrast"]})
    assert results.violations_count == 0, results.generate_report()


def test_search_finds_what_it_should(visit):
    search = visit("search.html?q=Tweedie")
    links = search.page.locator("#search-results li a")
    links.first.wait_for()
    links.first.click()
    search.page.wait_for_url("**/book/*.html*")
    assert "Tweedie" in search.page.locator("article").inner_text()
    assert all(url.startswith(("file:", "data:")) for url in search.requests)
    assert search.complaints == []


def test_search_leads_a_word_of_the_field_to_its_sentence(visit):
    links = visit("search.html?q=SURE").page.locator("#search-results li a")
    links.first.wait_for()
    assert links.first.get_attribute("href") == "book/glossary.html#term-SURE"


def test_index_leads_to_the_first_page(visit):
    index = visit("index.html")
    index.page.wait_for_url("**/book/intro.html")
