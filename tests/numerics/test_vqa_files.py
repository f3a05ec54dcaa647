import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied_rl.envs.vqa.files import FileOptions, load_questions

PILImage = pytest.importorskip("PIL.Image")
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def png():
    buffer = io.BytesIO()
    PILImage.fromarray(PICTURE).save(buffer, format="PNG")
    return buffer.getvalue()


def write(tmp_path, rows, name="data.jsonl"):
    (tmp_path / "a.png").write_bytes(png())
    text = "\n".join(json.dumps(row) for row in rows) if name.endswith("l") else json.dumps(rows)
    (tmp_path / name).write_text(text)
    return FileOptions(path=str(tmp_path / name), heldout_share=0.0)


def load(options):
    return load_questions(options, split="train")


def test_rows_of_every_layout_give_the_same_question(tmp_path):
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "<image>How many?"}]
    embedded = {"bytes": base64.b64encode(png()).decode()}
    rows = [
        {"prompt": "How many?", "images": ["a.png"], "answer": "3", "task": "geo"},
        {"prompt": messages, "images": [{"path": "a.png"}], "answer": 3, "data_source": "geo"},
        {"prompt": messages, "image": embedded, "reward_model": {"ground_truth": "3"}},
        {"problem": "<image>How many?", "image": "a.png", "solution": "3"},
    ]
    questions = load(write(tmp_path, rows))
    assert [q.task for q in questions] == ["geo", "geo", "vqa", "vqa"]
    for question in questions:
        assert (question.prompt, question.answer) == ("How many?", "3")
        assert np.array_equal(question.images[0], PICTURE)


def test_parquet_with_embedded_bytes_reads_like_jsonl(tmp_path):
    rows = [
        {
            "data_source": "geo3k",
            "prompt": [{"role": "user", "content": f"<image>Question {i}"}],
            "images": [{"bytes": png(), "path": None}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    questions = load(FileOptions(path=str(tmp_path / "data.parquet"), heldout_share=0.0))
    assert [(q.prompt, q.answer) for q in questions] == [
        (f"Question {i}", str(i)) for i in range(3)
    ]
    assert np.array_equal(questions[2].images[0], PICTURE) and questions[2].task == "geo3k"


def test_every_human_turn_of_a_conversation_is_a_question(tmp_path):
    turns = [("human", "<image>\nWhat?"), ("gpt", "A cat."), ("human", "Where?"), ("gpt", "Here.")]
    item = {"image": "a.png", "conversations": [{"from": f, "value": v} for f, v in turns]}
    questions = load(write(tmp_path, [item], "data.json"))
    assert [(q.prompt, q.answer) for q in questions] == [("What?", "A cat."), ("Where?", "Here.")]
    assert all(np.array_equal(q.images[0], PICTURE) for q in questions)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "answer": "1", "images": ["../secret.png"]}, "line 2: .*outside the data"),
        ({"prompt": "x", "answer": "1", "images": ["/etc/passwd"]}, "line 2: .*outside the data"),
        ({"prompt": "x", "answer": "1", "images": ["none.png"]}, "line 2: .*missing"),
        ({"prompt": "x", "answer": "1", "images": ["data.jsonl"]}, "line 2: .*not a picture"),
        ({"prompt": "x", "answer": "1", "images": [{"bytes": "%"}]}, "line 2: .*base64"),
        ({"prompt": "x"}, "line 2: .*no answer"),
        ({"answer": "1"}, "line 2: .*no prompt"),
        ([1], "line 2: .*JSON object"),
    ],
)
def test_a_bad_row_is_one_sentence_with_its_line(tmp_path, row, message):
    (tmp_path / "deep").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    good = {"prompt": "x", "answer": "1"}
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path / "deep", [good, row]))
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_data_folder_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "deep" / "link.png").symlink_to(tmp_path / "secret.png")
    options = write(tmp_path / "deep", [{"prompt": "x", "answer": "1", "images": ["link.png"]}])
    with pytest.raises(ValueError, match="outside the data folder"):
        load(options)


def test_the_held_out_rows_are_the_same_in_any_order_and_the_stated_share(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": str(i)} for i in range(2000)]
    found = []
    for name, part in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        write(tmp_path, part, name)
        options = FileOptions(path=str(tmp_path / name), heldout_share=0.2)
        test = {q.prompt for q in load_questions(options, split="heldout")}
        train = {q.prompt for q in load_questions(options, split="train")}
        assert not test & train and len(test | train) == 2000
        found.append(test)
    assert found[0] == found[1]
    assert 0.16 < len(found[0]) / 2000 < 0.24
