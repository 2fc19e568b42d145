"""Facts: the built-in set and every layout of file."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.commands import holding

from jacobian_lab.cli.listings import Facts
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact, describe
from jacobian_lab.facts.reading import BUILTIN, check_facts, load_facts, parse_slice, read_facts
from jacobian_lab.jobs.config import ComputingConfig
from jacobian_lab.jobs.setup import load_subject

RECORD = {
    "id": 7,
    "subject": "Ada",
    "prompt": "{} lives in",
    "target_new": " Rome ",
    "target_true": "Bath",
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_builtin_set_is_as_promised():
    facts = load_facts()
    relations = {str(fact.id).partition("/")[0] for fact in facts}
    assert len(facts) >= 160
    assert len(relations) >= 8
    by_relation = {r: {f.target_true for f in facts if str(f.id).startswith(f"{r}/")} for r in relations}
    true_of = {}
    for fact in facts:
        true_of.setdefault(fact.text, fact.target_true)
    for fact in facts:
        relation = str(fact.id).partition("/")[0]
        assert fact.target_new in by_relation[relation] - {fact.target_true}
        assert len(fact.paraphrase_prompts) == 2
        assert len({fact.text, *fact.paraphrase_prompts}) == 3
        assert all(fact.subject in paraphrase for paraphrase in fact.paraphrase_prompts)
        assert len(fact.neighborhood_prompts) >= 5
        assert fact.text not in fact.neighborhood_prompts
        assert all(true_of[prompt] == fact.target_true for prompt in fact.neighborhood_prompts)


def test_a_short_slice_of_the_builtin_set_meets_every_relation():
    assert len({str(fact.id).partition("/")[0] for fact in load_facts(BUILTIN, "0:10")}) == 10


def test_flat_layout_with_defaults(tmp_path):
    (fact,) = load_facts(write(tmp_path / "f.json", [RECORD]))
    assert (fact.id, fact.target_new, fact.text) == (7, "Rome", "Ada lives in")
    assert fact.paraphrase_prompts == fact.neighborhood_prompts == ()


def test_json_lines_and_missing_ids(tmp_path):
    record = {key: value for key, value in RECORD.items() if key != "id"}
    path = write(
        tmp_path / "f.jsonl",
        json.dumps(record) + "\n\n" + json.dumps({**record, "subject": "Bea"}) + "\n",
    )
    assert [(fact.id, fact.subject) for fact in load_facts(path)] == [(0, "Ada"), (1, "Bea")]


def test_shared_files(shared):
    counterfact = load_facts(shared / "data" / "counterfact_2000.json", "100:104")
    assert [fact.id for fact in counterfact] == [107, 108, 109, 110]
    zsre = load_facts(shared / "data" / "zsre_2000.json")
    assert len(zsre) == 2000
    assert len(load_facts(shared / "data" / "counterfact_2000.json")) == 2000
    assert all(len(fact.neighborhood_answers) == len(fact.neighborhood_prompts) == 1 for fact in zsre)


def test_slices():
    assert parse_slice(None, 5) == (0, 5)
    assert parse_slice("1:3", 5) == (1, 3)
    assert parse_slice("3:", 5) == (3, 5)
    assert parse_slice(":2", 5) == (0, 2)


@pytest.mark.parametrize("text", ["3", "a:b", "3:3", "4:2", "0:6", "-1:2", "7:9", ""])
def test_bad_slices(text):
    with pytest.raises(InputError, match="expected a slice"):
        parse_slice(text, 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "at least one fact"),
        ("", "at least one fact"),
        ("{broken", "neither"),
        ('["text"]', "expected an object"),
        ([{**RECORD, "subject": None}], "field 'subject', got nothing"),
        (
            [{k: v for k, v in RECORD.items() if k != "target_new"}],
            "field 'target_new', got nothing",
        ),
        ([{k: v for k, v in RECORD.items() if k != "prompt"}], "field 'prompt', got nothing"),
        ([{**RECORD, "prompt": "ADA lives in"}], "got 0 .*'Ada' stands in it as 'ADA'"),
        ([{**RECORD, "prompt": "Bea lives in"}], "'Ada' does not appear"),
        ([{**RECORD, "prompt": "{} and {} live in"}], "got 2"),
        ([{**RECORD, "target_new": "  "}], "target_new that is not empty"),
        ([{**RECORD, "subject": ""}], "subject that is not empty"),
        ([{**RECORD, "paraphrase_prompts": "no list"}], "list of texts"),
        ([RECORD, RECORD], "own id, got 7 twice"),
        ([{**RECORD, "id": 1.5}], "whole number or a string as id"),
        (
            [{"subject": "Ada", "src": "Where does Bea live?", "answers": ["Rome"]}],
            "does not appear",
        ),
        ([{"requested_rewrite": "text"}], "expected an object as requested_rewrite"),
        ([{"subject": "Ada", "src": "Where does Ada live?", "answers": "Rome"}], "list of answers, got 'Rome'"),
        ('[{"subject": "\\ud800", "prompt": "{} is", "target_new": "x"}]', "lone surrogate"),
        ([{**RECORD, "id": 2**70}], "whole number or a string as id"),
        ([{**RECORD, "id": "x\0"}], "an id that can be written, got a NUL"),
        ([{**RECORD, "case_id": "x\0", "id": None}], "an id that can be written, got a NUL"),
        *(
            ([{**RECORD, name: "x\0"}], f"text in the field '{name}', got a NUL")
            for name in ("subject", "prompt", "target_new", "target_true")
        ),
        *(
            ([{**RECORD, "neighborhood_prompts": ["x"], name: ["x\0"]}], f"list of texts in the field '{name}'")
            for name in ("paraphrase_prompts", "neighborhood_prompts", "neighborhood_prompts_answers")
        ),
        ([{**RECORD, "probes": [{"group": "x\0", "prompt": "x", "answers": ["x"]}]}], "'group', got a NUL"),
        ([{**RECORD, "probes": [{"group": "x", "prompt": "x\0", "answers": ["x"]}]}], "'prompt', got a NUL"),
        (
            [{**RECORD, "probes": [{"group": "x", "prompt": "x", "answers": ["x\0"]}]}],
            "list of texts in the field 'answers",
        ),
        ([{**RECORD, "portability": {"x\0": {"prompt": "x", "ground_truth": "x"}}}], "'group', got a NUL"),
        ("[" * 100_000, "neither"),
    ],
)
def test_bad_files(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as caught:
        load_facts(write(tmp_path / "f.json", content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b'[{"subject": "M\xe9xico"}]')
    with pytest.raises(InputError, match="UTF-8, got byte 0xe9"):
        load_facts(path)


def test_line_separators_inside_a_record_do_not_end_it(tmp_path):
    record = {**RECORD, "paraphrase_prompts": ["one\u2028two", "three\x85four"]}
    path = write(tmp_path / "f.jsonl", json.dumps(record, ensure_ascii=False))
    assert load_facts(path)[0].paraphrase_prompts == ("one\u2028two", "three\x85four")


def test_absent_files(tmp_path):
    with pytest.raises(InputError, match="not there"):
        load_facts(tmp_path / "none.json")
    with pytest.raises(InputError, match="a folder"):
        load_facts(tmp_path)


def test_a_prompt_may_have_its_subject_written_out(tmp_path):
    written = [
        ("Ada lives in", "{} lives in"),
        ("Adam likes Ada in", "Adam likes {} in"),
        ("Ada and Ada in", "{} and Ada in"),
    ]
    path = write(tmp_path / "f.json", [{**RECORD, "id": i, "prompt": text} for i, (text, _) in enumerate(written)])
    assert [fact.prompt for fact in load_facts(path)] == [prompt for _, prompt in written]


@pytest.mark.parametrize(
    ("subject", "prompt", "rest"),
    [
        ("Ana", "The Banana that Anabel ate was", None),
        ("Ana", "The Banana that Ana ate was", "The Banana that {} ate was"),
        ("Ana", "Banana and Ana's dog", "Banana and {}'s dog"),
        ("Ana", "Anabel, Ana-Maria", "Anabel, {}-Maria"),
        ("Ana", "Ana\u2019s dog", "{}\u2019s dog"),
        ("Ana", "(Ana)", "({})"),
        ("German", "Germany borders on", None),
        ("Apollo 1", "Apollo 11 flew to", None),
        ("Анна", "Аннабель живёт в", None),
        ("Άννα", "Η Άνναμπελ ζει", None),
        ("Jose", "Jose\u0301 lives in", None),
        ("Jose\u0301", "Jose\u0301 lives in", "{} lives in"),
        ("Yahoo!", "Yahoo! was founded by", "{} was founded by"),
        (".NET", "What is .NET?", "What is {}?"),
        ("C++", "C++11 came after", "{}11 came after"),
        ("anana", "Bananana anana", "Bananana {}"),
        ("Tokyo", "首都はTokyoです", "首都は{}です"),
        ("東京", "東京都は", "{}都は"),
        ("กรุงเทพ", "เมืองกรุงเทพอยู่ใน", "เมือง{}อยู่ใน"),
        ("서울", "서울은 어디에", "{}은 어디에"),
        ("القاهرة", "والقاهرة في", "و{} في"),
        ("राम", "श्रीराम और राम का", "श्रीराम और {} का"),
    ],
)
def test_a_subject_stands_as_words_of_its_own_where_words_are_spelled_apart(tmp_path, subject, prompt, rest):
    record = {**RECORD, "subject": subject, "prompt": prompt}
    path = write(tmp_path / "f.json", [{**RECORD, "id": 8}, record])
    if rest is not None:
        assert load_facts(path)[1].prompt == rest
        return
    with pytest.raises(InputError, match=r"only inside another word of .* in record 1 of .*: mend it, or put {}"):
        load_facts(path)
    marked = prompt.replace(subject, "{}", 1)
    assert load_facts(write(path, [{**record, "prompt": marked}]))[0].prompt == marked


@pytest.mark.parametrize(
    ("prompt", "own_join", "read", "join"),
    [
        ("{} lives in", None, "{} lives in", None),
        ("{} lives in ", None, "{} lives in", " "),
        ("{} lives in  ", "", "{} lives in", ""),
        ("{}住在", "", "{}住在", ""),
        ("<user>\nWho is {}?\n<assistant>\n", None, "<user>\nWho is {}?\n<assistant>\n", None),
        ("{}\t", " ", "{}\t", " "),
    ],
)
def test_only_spaces_are_taken_off_the_end_of_a_prompt_and_then_join_the_answer(tmp_path, prompt, own_join, read, join):
    others = {"paraphrase_prompts": ["one ", "two\n"], "neighborhood_prompts": ["three \n "]}
    record = {**RECORD, "prompt": prompt, **others} | ({} if own_join is None else {"join": own_join})
    (fact,) = load_facts(write(tmp_path / "f.json", [record]))
    assert (fact.prompt, fact.join) == (read, join)
    assert (fact.paraphrase_prompts, fact.neighborhood_prompts) == (("one", "two\n"), ("three \n",))


def test_facts_without_join_and_probes_are_described_as_they_always_were(tmp_path):
    (plain,) = describe(load_facts(write(tmp_path / "f.json", [RECORD])))
    assert "join" not in plain
    assert "probes" not in plain
    probe = {"group": "why", "prompt": "what?", "answers": ["this", "that"]}
    (full,) = describe(load_facts(write(tmp_path / "f.json", [{**RECORD, "join": "", "probes": [probe]}])))
    assert json.loads(json.dumps(full)) == full == plain | {"join": "", "probes": [probe]}


BAD_LINES = "\n".join([
    json.dumps(RECORD),
    '{"subject": "Bea", "prompt"',
    "",
    json.dumps({"id": "no subject", "prompt": "Who built the old bridge?", "target_new": "Rome"}),
    json.dumps({**RECORD, "id": 8, "subject": "Cleo"}),
])


def test_every_bad_record_is_named_with_its_line_and_reason(tmp_path):
    path = write(tmp_path / "f.jsonl", BAD_LINES)
    with pytest.raises(InputError, match="got 2 records that cannot be used") as caught:
        load_facts(path)
    message = str(caught.value)
    assert "line 2: expected an object" in message
    assert "line 4: expected text in the field 'subject', got nothing: add the words of the prompt" in message
    assert message.endswith("or go on without by on_bad_record skip")


def test_the_others_are_used_where_bad_records_are_skipped(tmp_path):
    path = write(tmp_path / "f.jsonl", BAD_LINES)
    file = read_facts(path, on_bad_record="skip")
    assert [fact.subject for fact in file.facts] == ["Ada", "Cleo"]
    assert [(record.place, record.id) for record in file.refused] == [("line 2", None), ("line 4", "no subject")]
    assert load_facts(path, on_bad_record="skip") == file.facts
    with pytest.raises(InputError, match="2 records that cannot be used"):
        load_facts(path, "1:3", on_bad_record="skip")


def test_a_slice_is_by_place_so_that_bad_records_outside_it_are_in_nobody_s_way(tmp_path):
    path = write(tmp_path / "f.jsonl", BAD_LINES)
    assert [fact.subject for fact in load_facts(path, "3:4")] == ["Cleo"]
    file = read_facts(path, "0:3", on_bad_record="skip")
    assert ([fact.subject for fact in file.facts], len(file.refused)) == (["Ada"], 2)


def test_one_bad_record_has_the_line_for_itself(tmp_path):
    path = write(tmp_path / "f.json", [RECORD, {**RECORD, "id": 8, "target_new": None}])
    words = "expected text in the field 'target_new', got nothing in record 1 of .*: add it, or go on without"
    with pytest.raises(InputError, match=words):
        load_facts(path)


def test_twenty_bad_records_are_named_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "f.json", [RECORD, *({"id": i} for i in range(25))])
    with pytest.raises(InputError, match=r"record 20: .*; and 5 more") as caught:
        load_facts(path)
    assert "record 21" not in str(caught.value)


def test_a_question_that_writes_the_subject_otherwise_refuses_that_record_alone(tmp_path):
    records = [
        {"subject": "Mira Vale", "src": f"Where was Mira Vale born in {i}?", "answers": ["Rome"]} for i in range(100)
    ]
    records[41]["src"] = "Where was MIRA VALE born?"
    file = read_facts(write(tmp_path / "f.json", records), on_bad_record="skip")
    assert len(file.facts) == 99
    assert file.refused[0].place == "record 41"
    assert "stands in it as 'MIRA VALE'" in file.refused[0].reason


THRICE = [{**RECORD, "id": i, "target_new": answer} for i, answer in enumerate(("Rome", "Oslo", "Rome"))]


def test_conflicts_are_refused_unless_each_is_to_be_edited_once(tmp_path):
    path = write(tmp_path / "f.json", THRICE)
    with pytest.raises(InputError, match=r"Rome / Oslo / Rome in record 0, record 1, record 2.*on_repeat first"):
        load_facts(path)
    for how, answers in {"first": [(0, "Rome")], "last": [(2, "Rome")]}.items():
        file = read_facts(path, on_repeat=how)
        assert [(fact.id, fact.target_new) for fact in file.facts] == answers
        (conflict,) = file.conflicts
        assert (conflict.subject, conflict.prompt, conflict.ids) == ("Ada", "{} lives in", (0, 1, 2))
        assert (conflict.answers, file.duplicates) == (("Rome", "Oslo", "Rome"), ())


def test_duplicates_are_told_from_conflicts(tmp_path):
    path = write(tmp_path / "f.json", [THRICE[0], {**THRICE[1], "subject": "Bea"}, THRICE[2]])
    with pytest.raises(InputError, match="Rome / Rome in record 0, record 2"):
        load_facts(path)
    file = read_facts(path, on_repeat="last")
    assert [fact.id for fact in file.facts] == [1, 2]
    assert (file.duplicates[0].places, file.conflicts) == (("record 0", "record 2"), ())
    all_of_them = read_facts(path, on_repeat="keep")
    assert (len(all_of_them.facts), all_of_them.duplicates) == (3, file.duplicates)


@pytest.mark.parametrize("name", ["counterfact_2000.json", "zsre_2000.json"])
def test_shared_records_with_their_subject_written_out_are_the_same_facts(shared, tmp_path, name):
    records = json.loads((shared / "data" / name).read_text("utf-8"))
    written = [{**record, "prompt": record["prompt"].replace("{}", record["subject"])} for record in records]
    file = read_facts(write(tmp_path / "f.json", written))
    assert (len(file.facts), file.facts) == (2000, load_facts(shared / "data" / name))


FACT = Fact("ada", "Ada", "{} lives in", "Rome", "Bath", ("Ada's home is",), ("Bea lives in",), ("Oslo",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "Someone lives in"}, "expected one {} in the prompt .* in fact 'ada'"),
        ({"prompt": "Ada lives in"}, "expected '{} lives in' as prompt of fact 'ada', got 'Ada lives in'"),
        ({"target_new": " Rome"}, "expected 'Rome' as target_new of fact 'ada', got ' Rome': write it so"),
        ({"neighborhood_answers": (" Oslo",)}, "as neighborhood_answers of fact 'ada', got"),
        ({"id": "ada\0"}, "an id that can be written"),
        ({"subject": "A\0"}, "'subject', got a NUL"),
        ({"subject": ""}, "a subject that is not empty"),
    ],
)
def test_facts_of_one_s_own_making_are_such_as_a_file_gives(changes, words):
    check_facts([FACT, replace(FACT, id="bea", subject="Bea")])
    with pytest.raises(InputError, match=words):
        check_facts([replace(FACT, **changes)])


def test_facts_of_one_s_own_making_come_once():
    with pytest.raises(InputError, match="every fact to have its own id, got 'ada' twice"):
        check_facts([FACT, replace(FACT, subject="Bea")])
    with pytest.raises(InputError, match="'Ada lives in' -> Rome / Bern in fact 0, fact 1"):
        check_facts([FACT, replace(FACT, id="other", target_new="Bern")])


def test_facts_that_are_read_pass_as_one_s_own(shared):
    for source in (BUILTIN, shared / "data" / "counterfact_2000.json", shared / "data" / "zsre_2000.json"):
        check_facts(load_facts(source, on_repeat="first"))


def test_the_built_in_facts_have_no_repeats():
    file = read_facts()
    assert (file.refused, file.duplicates, file.conflicts, file.unknown) == ((), (), (), {})
    assert file.notes() == []


def test_fields_that_nothing_uses_are_named_once_with_what_they_may_mean(tmp_path):
    records = [{**RECORD, "id": i, "subject": f"Ada {i}", "paraphrases": ["x"], "zzz": 1} for i in range(3)]
    file = read_facts(write(tmp_path / "f.json", records))
    assert file.unknown == {"paraphrases": 3, "zzz": 3}
    assert file.notes() == [
        "fields that nothing uses ('paraphrases' in 3 records, did you mean paraphrase_prompts?; 'zzz' in 3 records)"
    ]


@pytest.mark.parametrize("how", [{"on_bad_record": "ignore"}, {"on_repeat": "both"}])
def test_unknown_ways_are_refused(how):
    with pytest.raises(InputError, match=f"expected {next(iter(how))} of"):
        load_facts(BUILTIN, **how)
    with pytest.raises(InputError, match="choose one of them"):
        load_subject(holding(ComputingConfig(), **how))


def test_facts_that_would_be_edited_twice_are_refused_before_the_model_is_loaded():
    with pytest.raises(InputError, match="expected of refuse, first, last, got on_repeat 'keep'"):
        load_subject(holding(ComputingConfig(model="nowhere"), on_repeat="keep"))


COUNT = """
import sys
from jacobian_lab.facts.reading import read_facts
file = read_facts(sys.argv[1], on_bad_record="skip")
print(len(file.facts), *(record.place for record in file.refused))
"""  # in a process of its own, without the checks of every call that tests have


@pytest.mark.slow
def test_a_hundred_thousand_records_with_one_bad_among_them(tmp_path):
    lines = [json.dumps({**RECORD, "id": i, "subject": f"Ada {i}"}) for i in range(100_000)]
    lines[77_777] = lines[77_777][:-5]
    path = write(tmp_path / "f.jsonl", "\n".join(lines))
    process = subprocess.run([sys.executable, "-c", COUNT, path], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["99999", "line", "77778"]


def test_the_command_says_on_stderr_what_it_skipped_and_lists_the_others(tmp_path, capsys):
    path = write(tmp_path / "f.jsonl", BAD_LINES)
    Facts(str(path), on_bad_record="skip").run()
    captured = capsys.readouterr()
    assert [line.split("\t")[1] for line in captured.out.splitlines()] == ["Ada lives in", "Cleo lives in"]
    assert "records skipped: 2 (line 2: " in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_says_which_records_it_left_out(tmp_path, folders):
    records = [*THRICE, {"id": 9, "prompt": "{} lives in"}, {**RECORD, "id": 10, "subject": "Bea", "paraphrases": []}]
    path = write(tmp_path / "f.json", records)
    config = ComputingConfig(
        model=str(folders["llama"]), facts=str(path), layers="2-4", on_bad_record="skip", on_repeat="first"
    )
    provenance = load_subject(config).provenance()["facts"]
    assert provenance["count"] == 2
    assert provenance["skipped"] == [
        f"record 3: {read_facts(path, on_bad_record='skip', on_repeat='keep').refused[0].reason}"
    ]
    assert provenance["repeats"] == ["'Ada lives in' -> Rome / Oslo / Rome in record 0, record 1, record 2"]
